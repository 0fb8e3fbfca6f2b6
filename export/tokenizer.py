def load_tokenizer(path, config, n_rows, required):
    return None
