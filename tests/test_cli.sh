#!/bin/bash
# The command line as its users see it: what goes to which stream, exit codes, every refusal with
# its sentence. Needs a built linnet (LINNET=path, default ./linnet) and tests/data.
# Prints a line per check, "ok N name" or "not ok N name"; exit 1 if any failed.
set -u
cd "$(dirname "$0")/.." || exit 1
linnet=${LINNET:-./linnet}
data=tests/data/cli
chat=$data/chat.gguf
vocab=$data/vocab.gguf
bare=tests/data/models/llama_f16.gguf # no vocabulary
gpt2=tests/data/models/gpt2.gguf      # learned positions, 160 of them
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count=0 bad=0

# check NAME COMMAND...: the command must succeed.
check() {
    local name=$1
    shift
    count=$((count + 1))
    if "$@"; then
        echo "ok $count $name"
    else
        bad=$((bad + 1))
        echo "not ok $count $name"
        echo "    exit code $code; standard output and error:"
        sed 's/^/    | /' <(head -c 500 "$work/out") <(echo)
        sed 's/^/    ! /' <(head -c 500 "$work/err") <(echo)
    fi
}
# try ARGUMENTS...: runs linnet; $code, $work/out, $work/err. Standard input is $in or nothing.
in=/dev/null
try() {
    "$linnet" "$@" >"$work/out" 2>"$work/err" <"$in"
    code=$?
}
code_is() { [ "$code" -eq "$1" ]; }
silent() { [ ! -s "$work/out" ]; }
out_is() { [ "$code" -eq 0 ] && printf '%s\n' "$1" | cmp -s - "$work/out"; }
err_has() { grep -qF -- "$1" "$work/err"; }
err_is_one_line() { [ "$(wc -l <"$work/err")" -eq 1 ] && [ "$(head -c 8 "$work/err")" = "linnet: " ]; }

# refuses NAME CODE TEXT ARGUMENTS...: that exit code, one sentence on stderr with TEXT in it,
# nothing on stdout.
refusal() { code_is "$1" && silent && err_is_one_line && err_has "$2"; }
refuses() {
    local name=$1 want=$2 text=$3
    shift 3
    try "$@" --quiet
    check "$name" refusal "$want" "$text"
}
# The same for a wrong command line: exit code 2, and the way to the help.
misuse() { refusal 2 "$1" && err_has -- "--help"; }
misuses() {
    local name=$1 text=$2
    shift 2
    try "$@"
    check "$name" misuse "$text"
}
prints() {
    local name=$1 text=$2
    shift 2
    try "$@"
    check "$name" out_is "$text"
}
is_utf8() { iconv -f UTF-8 -t UTF-8 "$1" >/dev/null 2>&1; }

# Byte b is token b in these models: a large bias makes them say what we like.
say_A=(--logit-bias 65=1000)

# ---- help and version
for c in "" run chat info tokenize detokenize logits perplexity quantize bench recall pareto serve; do
    try $c --help
    help_is_good() { code_is 0 && [ ! -s "$work/err" ] && grep -q "${c:-usage}" "$work/out"; }
    check "linnet $c --help" help_is_good
done
try run --help
check "run --help states the rule of auto" grep -q "16-bit block" "$work/out"
check "run --help lists every flag of the contract" bash -c '
    for f in -t --threads --backend --isa --no-mmap --ctx --seed --temp --top-k --top-p --min-p \
        --repeat-penalty --logit-bias --stop --quiet --stats --activations --kv --parse-special -n \
        -p -f --save-state --load-state --window-mode; do grep -qE -- "(^| )$f[, ]" "$1" || { echo "    $f"; exit 1; }; done' _ "$work/out"
prints "version" "linnet 0.1.0" --version
try
check "no command: help on stderr, exit 2" eval 'code_is 2 && silent && err_has usage'
try run "$chat" -p --help -n 1 --quiet
check "--help as a value is a value" code_is 0

# ---- wrong command lines
misuses "unknown command" "unknown command 'sing'" sing
misuses "unknown flag before a command" "unknown flag --quiet" --quiet
for c in run chat info tokenize detokenize logits perplexity quantize; do
    misuses "$c names an unknown flag" "unknown flag --loud" "$c" "$chat" --loud
    misuses "$c without MODEL" "is missing" "$c"
done
misuses "one argument too many" "unexpected argument 'two'" run one two
misuses "flag without a value" "-p expects a value" run "$chat" -p
misuses "switch with a value" "--no-mmap takes no value" run "$chat" --no-mmap=yes
for bad_number in "" nan inf 12abc 1e999 -1 " 1" 0x10 99999999999999999999999 1.5.2; do
    for f in -n --ctx --threads --seed --temp --top-k --top-p --min-p --repeat-penalty; do
        misuses "run $f '$bad_number'" "$f expects a" run "$chat" -p x "$f" "$bad_number"
    done
    misuses "logits --chunk '$bad_number'" "--chunk expects a" \
        logits "$chat" --ids x -o y --chunk "$bad_number"
    misuses "perplexity --chars '$bad_number'" "--chars expects a" \
        perplexity "$chat" x --chars "$bad_number"
done
misuses "--threads 0" "--threads expects a whole number from 1" run "$chat" -p x --threads 0
misuses "--ctx 0" "--ctx expects" run "$chat" -p x --ctx 0
misuses "--top-p 1.5" "from 0 to 1" run "$chat" -p x --top-p 1.5
misuses "--ctx past 31 bits" "--ctx expects" run "$chat" -p x --ctx 2147483648
misuses "perplexity --ctx 1" "--ctx expects a whole number from 2" perplexity "$chat" x --ctx 1
for b in 5 =1 a=1 5= 5=nan 5=inf 5=1e99 -1=1 9999999999=1; do
    misuses "--logit-bias $b" "--logit-bias expects ID=X" run "$chat" -p x --logit-bias "$b"
done
misuses "--stop ''" "--stop expects a text" run "$chat" -p x --stop ""
misuses "--isa of nowhere" "--isa expects one of" run "$chat" -p x --isa sse9
misuses "--backend of nowhere" "--backend expects" run "$chat" -p x --backend cuda:x
misuses "--activations int3" "--activations expects one of" run "$chat" -p x --activations int3
misuses "--kv q2" "--kv expects one of" run "$chat" -p x --kv q2
misuses "exact with another kv" "contradicts" run "$chat" -p x --activations exact --kv f16
misuses "-p and -f" "exclude each other" run "$chat" -p x -f y
misuses "--lines and --messages" "exclude each other" tokenize "$chat" --lines a --messages b
misuses "--messages and --no-bos" "does not go with" tokenize "$chat" --messages a --no-bos
misuses "--template without --messages" "only for --messages" tokenize "$chat" --template chatml
misuses "detokenize without --ids" "--ids FILE is missing" detokenize "$chat"
misuses "logits without --ids" "--ids FILE is missing" logits "$chat" -o x
misuses "logits without -o" "-o OUT.npy is missing" logits "$chat" --ids x
misuses "quantize to nothing known" "TYPE is one of" quantize "$chat" "$work/q.gguf" q3_X
misuses "chat with an unknown template" "--template expects one of" chat "$chat" --template jazz --quiet
misuses "a port that is none" "--port expects a whole number from 0 to 65535" serve "$chat" --port 65536
misuses "no slots" "--slots expects" serve "$chat" --slots 0
misuses "bytes that are none" "--cache-bytes expects bytes" serve "$chat" --cache-bytes 1Q
misuses "bytes below nothing" "--cache-bytes expects bytes" serve "$chat" --cache-bytes -1G
misuses "no states" "--redis-bytes expects at least 1K" serve "$chat" --redis-bytes 0
misuses "a tiny body" "--max-body expects from 1K" serve "$chat" --max-body 5
misuses "serve with an unknown template" "--template expects one of" serve "$chat" --template jazz --quiet
try serve "$chat" --host no.such.host.invalid --quiet
check "a host that is none" refusal 1 "no.such.host.invalid"
try serve "$chat" --api-key-file "$work/none" --quiet
check "no key file" refusal 1 "No such file"

# ---- run: text, streams, ends
prints "run says what is sampled" "AAAAA" run "$chat" -p hi -n 5 "${say_A[@]}"
prints "flags and MODEL in any order" "AAA" run -n 3 --logit-bias=65=1000 -p hi "$chat"
try run "$chat" -p hi -n 3 "${say_A[@]}"
check "the default thread count is said once" [ "$(grep -c "physical cores" "$work/err")" = 1 ]
try run "$chat" -p hi -n 3 "${say_A[@]}" --quiet
check "--quiet is quiet" [ ! -s "$work/err" ]
prints "-n 0 generates nothing" "" run "$chat" -p hi -n 0
prints "the text ends at an end token" "" run "$chat" -p hi --logit-bias 261=1000
prints "the text ends before --stop" "" run "$chat" -p hi --stop B --stop AAA "${say_A[@]}" -n 9
try run "$chat" -p hi "${say_A[@]}" # 256 tokens: BOS, h, i and 253 more
check "the text ends when the context is full, and says so" eval \
    '[ "$(wc -c <"$work/out")" -eq 254 ] && err_has "context of 256 tokens is full"'
try run "$chat" -p hi "${say_A[@]}" --ctx 300 -n 1
check "a context beyond training is said" err_has "--ctx 300 is beyond the 256 tokens"
printf 'hi' >"$work/prompt"
prints "-f FILE" "AA" run "$chat" -f "$work/prompt" -n 2 "${say_A[@]}"
in=$work/prompt
prints "prompt from stdin" "AA" run "$chat" -n 2 "${say_A[@]}"
in=/dev/null
prints "an empty prompt continues from BOS" "AA" run "$chat" -p "" -n 2 "${say_A[@]}"
try run "$chat" -p "hello" -n 100 --logit-bias 195=4 --logit-bias 226=4 --temp 2 --seed 5
check "whole UTF-8 characters whatever is sampled" eval 'code_is 0 && is_utf8 "$work/out"'
try run "$chat" -p "hello" -n 40 --temp 1.5 --seed 7 --quiet
cp "$work/out" "$work/first"
try run "$chat" -p "hello" -n 40 --temp 1.5 --seed 7 --quiet --threads 2
check "same seed, same text, with 2 threads too" cmp -s "$work/first" "$work/out"
try run "$chat" -p "hello" -n 40 --temp 1.5 --seed 8 --quiet
check "another seed, another text" eval '! cmp -s "$work/first" "$work/out"'
try run "$chat" -p "hello" -n 8 --stats --quiet
check "--stats is the last line" grep -qE \
    '^linnet: prefill [0-9.]+ tok/s \(3\), decode [0-9.]+ tok/s \(8\), [0-9.]+ GB/s, state [0-9]+ bytes, peak RSS [0-9.]+ MB, logits [0-9a-f]{16}$' \
    <(tail -1 "$work/err")
sed 's/.*logits//' "$work/err" >"$work/hash"
try run "$chat" -p "hello" -n 8 --stats --quiet --no-mmap --threads 1
check "the same logits hash from a file read, not mapped, by 1 thread" eval \
    'sed "s/.*logits//" "$work/err" | cmp -s - "$work/hash"'

# ---- run: bad input
refuses "prompt that is not UTF-8" 1 "not valid UTF-8: byte 0xff at offset 2" run "$chat" -p $'hi\xff'
printf 'abc\xed\xa0\x80' >"$work/surrogate"
refuses "a surrogate in -f" 1 "byte 0xed at offset 3" run "$chat" -f "$work/surrogate"
refuses "prompt longer than the context" 1 "the prompt has 11 tokens, more than the context of 8" \
    run "$chat" -p 0123456789 --ctx 8
refuses "no such prompt file" 1 "cannot open $work/none" run "$chat" -f "$work/none"
refuses "a folder as prompt" 1 "cannot read $work" run "$chat" -f "$work"
refuses "a model without a vocabulary" 1 "vocabulary" run "$bare" -p hi
refuses "a vocabulary without a model" 1 "$vocab" run "$vocab" -p hi
refuses "a bias on a token that does not exist" 1 "5000" run "$chat" -p hi --logit-bias 5000=1
refuses "a backend that is not built" 1 "cuda" run "$chat" -p hi --backend cuda

# ---- model files that are none
refuses "no such model" 1 "$work/none.gguf" run "$work/none.gguf" -p hi
refuses "a folder as model" 1 "$work" info "$work"
: >"$work/empty.gguf"
refuses "an empty file" 1 "$work/empty.gguf" info "$work/empty.gguf"
echo '<!DOCTYPE html><html>Not found</html>' >"$work/page.gguf"
refuses "a web page" 1 "$work/page.gguf" info "$work/page.gguf"
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n' >"$work/lfs.gguf"
refuses "a Git LFS pointer" 1 "$work/lfs.gguf" tokenize "$work/lfs.gguf"
head -c 60000 "$chat" >"$work/cut.gguf"
for c in "run -p hi" info tokenize chat; do
    set -- $c
    refuses "a truncated file in $1" 1 "$work/cut.gguf" "$1" "$work/cut.gguf" "${@:2}"
done

# ---- stdout that does not take it
"$linnet" run "$chat" -p hi --quiet "${say_A[@]}" >/dev/full 2>"$work/err"
code=$?
: >"$work/out"
check "a full disk" refusal 1 "cannot write to standard output: No space left"
for c in "run $chat -p hi" "info $chat" "tokenize $chat" --version --help; do
    "$linnet" $c >&- 2>"$work/err" </dev/null
    code=$?
    check "closed stdout: ${c%% *}" eval 'code_is 1 && err_has "cannot write to standard output"'
done
{
    sleep 0.2
    "$linnet" run "$chat" -p hi --quiet "${say_A[@]}" 2>"$work/err"
    echo $? >"$work/code"
} | :
code=$(cat "$work/code")
check "a reader that left" refusal 1 "cannot write to standard output: Broken pipe"
"$linnet" logits "$chat" --ids <(echo 1 2) -o "$work/closed.npy" --quiet >&- 2>"$work/err"
code=$?
check "closed stdout does not hurt a command that writes a file" eval \
    'code_is 0 && [ "$(head -c 6 "$work/closed.npy" | tail -c 5)" = NUMPY ]'

# ---- signals
# interrupt SIGNAL ARGUMENTS...: sends it once text is coming.
interrupt() {
    local signal=$1 tries=0
    shift
    : >"$work/out"
    "$linnet" "$@" >"$work/out" 2>"$work/err" </dev/null &
    local pid=$!
    while [ ! -s "$work/out" ] && [ $tries -lt 200 ]; do sleep 0.05 && tries=$((tries + 1)); done
    kill "-$signal" $pid
    wait $pid
    code=$?
}
endless=(run "$chat" -p hi --ctx 100000000 --quiet "${say_A[@]}")
interrupt INT "${endless[@]}"
check "Ctrl-C ends the text with a newline, exit 130" eval \
    'code_is 130 && [ ! -s "$work/err" ] && [ -z "$(tail -c 1 "$work/out" | tr -d "\n")" ]'
interrupt TERM "${endless[@]}"
check "SIGTERM too, exit 143" eval 'code_is 143 && [ ! -s "$work/err" ]'
interrupt BUS "${endless[@]}"
check "SIGBUS is a sentence" eval 'code_is 1 && err_has "changed while it was mapped"'
cp "$chat" "$work/shrinks.gguf"
mkfifo "$work/fifo"
"$linnet" run "$work/shrinks.gguf" -f "$work/fifo" -n 3 --quiet >"$work/out" 2>"$work/err" &
pid=$!
exec 3>"$work/fifo" # opens once linnet waits for the prompt
: >"$work/shrinks.gguf"
printf 'hi' >&3
exec 3>&-
wait $pid
code=$?
check "a model file that shrinks while in use is no crash" eval \
    'code_is 0 || { code_is 1 && err_has "changed while it was mapped"; }'

# ---- tokenize, detokenize
printf 'hello' >"$work/hello"
in=$work/hello
prints "tokenize stdin, BOS first" "259 258 111" tokenize "$chat"
prints "--no-bos" "258 111" tokenize "$chat" --no-bos
prints "a vocabulary alone is enough" "259 258 111" tokenize "$vocab"
refuses "tokenize without a vocabulary" 1 "vocabulary" tokenize "$bare"
printf 'a<|im_end|>' >"$work/special"
in=$work/special
prints "--parse-special" "97 261" tokenize "$chat" --no-bos --parse-special
try tokenize "$chat" --no-bos
check "special tokens in a text are text" eval 'code_is 0 && ! grep -q 261 "$work/out"'
in=/dev/null
prints "tokenize nothing" "259" tokenize "$chat"
in=$work/surrogate
refuses "tokenize what is not UTF-8" 1 "standard input is not valid UTF-8" tokenize "$chat"
in=/dev/null
printf '{"text": "a\\u0000b"}\n\n{"text": "\xc3\xa9", "more": 1}\n{"text": ""}\n' >"$work/l.jsonl"
prints "tokenize --lines, NUL included" $'97 0 98\n195 169\n' tokenize "$chat" --no-bos --lines "$work/l.jsonl"
printf '{"messages": [{"role": "user", "content": "a<|im_end|>"}], "add_generation_prompt": true}\n' >"$work/m.jsonl"
printf '{"messages": [{"role": "user", "content": "b"}]}\n' >>"$work/m.jsonl"
try tokenize "$chat" --messages "$work/m.jsonl"
check "tokenize --messages: frames are tokens, contents are text" eval \
    'code_is 0 && [ "$(head -1 "$work/out" | tr " " "\n" | grep -c "^26[01]$")" = 3 ]'
check "add_generation_prompt is false unless given" eval \
    '[ "$(tail -1 "$work/out" | tr " " "\n" | grep -c "^26[01]$")" = 2 ]'
refuses "an unknown template says how to choose" 1 "choose one with --template" \
    tokenize "$vocab" --messages "$work/m.jsonl"
try tokenize "$vocab" --messages "$work/m.jsonl" --template chatml
check "--template chooses" code_is 0
bad_line() { # FLAG LINE
    printf '{"text": "a"}\n%s\n' "$2" >"$work/bad.jsonl"
    try tokenize "$chat" --quiet "$1" "$work/bad.jsonl"
    check "tokenize $1 of $2" eval 'code_is 1 && err_is_one_line && err_has "bad.jsonl, line 2: "'
}
for j in '{"text":' '{"text": 1}' '[]' '{}' '"text"' '{"text": "\ud800"}' $'{"text": "\xff"}' nonsense; do
    bad_line --lines "$j"
done
printf '{"messages": [{"role": "user", "content": "a\\u0000b"}]}\n' >"$work/nul.jsonl"
refuses "a NUL in a message" 1 "line 1: message 1 holds a NUL" tokenize "$chat" --messages "$work/nul.jsonl"
for j in '{}' '{"messages": 1}' '{"messages": [{}]}' '{"messages": [{"role": "user"}]}' \
    '{"messages": [{"role": "user", "content": 7}]}' '{"messages": [], "add_generation_prompt": 1}'; do
    printf '%s\n' "$j" >"$work/bad.jsonl"
    refuses "tokenize --messages of $j" 1 "bad.jsonl, line 1: expected" \
        tokenize "$chat" --messages "$work/bad.jsonl"
done
refuses "no such lines" 1 "cannot open $work/none" tokenize "$chat" --lines "$work/none"
printf '258 111\n\n 259 65 261\t66 \r\n195 169' >"$work/ids"
prints "detokenize" $'{"text": "hello"}\n{"text": ""}\n{"text": "AB"}\n{"text": "\\u00E9"}' \
    detokenize "$chat" --ids "$work/ids"
printf '261\n' >"$work/ids1"
prints "detokenize --parse-special" '{"text": "<|im_end|>"}' detokenize "$chat" --parse-special --ids "$work/ids1"
printf '195\n' >"$work/half"
prints "half a character is U+FFFD" '{"text": "\uFFFD"}' detokenize "$chat" --ids "$work/half"
for id in 262 -1 1x 99999999999999999999 1.5; do
    printf '1 2\n3 %s\n' "$id" >"$work/badids"
    try detokenize "$chat" --ids "$work/badids"
    check "detokenize id $id" eval \
        'code_is 1 && err_has "badids, line 2: expected a token id from 0 to 261, found '"'$id'"'"'
    refuses "logits id $id" 1 "badids, line 2: expected a token id" \
        logits "$chat" --ids "$work/badids" -o "$work/none.npy"
done
refuses "detokenize without a vocabulary" 1 "vocabulary" detokenize "$bare" --ids "$work/ids"

# ---- logits
seq 1 40 >"$work/ids40"
try logits "$chat" --ids "$work/ids40" -o "$work/full.npy"
check "logits writes [T, rows]" eval \
    'code_is 0 && silent && head -1 "$work/full.npy" | grep -aq "(40, 262)"'
check "with a header of 128 bytes and T x rows floats" \
    [ "$(wc -c <"$work/full.npy")" = $((128 + 40 * 262 * 4)) ]
# floats FILE: a number per line. differ A B: the largest difference.
floats() { tail -c +129 "$1" | od -An -v -t f4 -w4; }
near() {
    paste <(floats "$1") <(floats "$2") |
        awk '{ d = $1 - $2; d = d < 0 ? -d : d; if (!(d <= 1e-4)) bad = 1 } END { exit bad || NR != 40 * 262 }'
}
for chunk in 1 7 40 1000; do
    try logits "$chat" --ids "$work/ids40" -o "$work/part.npy" --chunk $chunk
    check "logits --chunk $chunk is within 1e-4" near "$work/full.npy" "$work/part.npy"
done
try logits "$chat" --ids "$work/ids40" -o "$work/part.npy" --threads 1 --no-mmap
check "1 thread, read: the same bits" cmp -s "$work/full.npy" "$work/part.npy"
try logits "$chat" --ids "$work/ids40" -o "$work/part.npy" --threads 3
check "3 threads: the same bits" cmp -s "$work/full.npy" "$work/part.npy"
try logits "$chat" --ids "$work/ids40" -o "$work/last.npy" --last
check "--last writes the last row" eval \
    'head -1 "$work/last.npy" | grep -aq "(1, 262)" && cmp -s <(tail -c 1048 "$work/full.npy") <(tail -c 1048 "$work/last.npy")'
try logits "$bare" --ids "$work/ids40" -o "$work/bare.npy"
check "logits of a model without a vocabulary" code_is 0
mkdir "$work/place"
refuses "more ids than the context" 1 "holds 40 ids, more than the context of 39" \
    logits "$chat" --ids "$work/ids40" -o "$work/place/x.npy" --ctx 39
refuses "no ids" 1 "holds no token ids" logits "$chat" --ids /dev/null -o "$work/place/x.npy"
refuses "learned positions cannot be exceeded" 1 "160" \
    logits "$gpt2" --ids "$work/ids40" -o "$work/place/x.npy" --ctx 161
# The last weight of the file becomes NaN.
cp "$chat" "$work/nan.gguf"
printf '\0\0\300\177' | dd of="$work/nan.gguf" bs=1 seek=$(($(wc -c <"$work/nan.gguf") - 4)) conv=notrunc 2>/dev/null
try logits "$work/nan.gguf" --ids "$work/ids40" -o "$work/place/x.npy" --quiet
check "NaN in the logits" eval 'code_is 1 && err_is_one_line'
check "a failed command leaves no file behind" [ -z "$(ls -A "$work/place")" ]
refuses "logits into a folder" 1 "it is a folder" logits "$chat" --ids "$work/ids40" -o "$work/place"
refuses "logits into no folder" 1 "cannot write $work/none/x.npy" \
    logits "$chat" --ids "$work/ids40" -o "$work/none/x.npy"
refuses "logits onto a full disk" 1 "No space left" logits "$chat" --ids "$work/ids40" -o /dev/full
check "/dev/full is still there" [ -c /dev/full ]
echo old >"$work/target.npy"
ln -s target.npy "$work/link.npy"
try logits "$chat" --ids "$work/ids40" -o "$work/link.npy" --last
check "a link's target is replaced, not the link" eval \
    '[ -L "$work/link.npy" ] && cmp -s "$work/last.npy" "$work/target.npy"'

# ---- perplexity
printf 'abcdefghij%.0s' 1 2 3 4 5 6 7 8 9 10 >"$work/text"
try perplexity "$chat" "$work/text" --ctx 30
check "perplexity: windows of 30, 30, 30, 10" grep -qE '^perplexity [0-9.]+ \+- [0-9.]+ \(96 scored\)$' "$work/out"
check "and no other line" [ "$(wc -l <"$work/out")" = 1 ]
try perplexity "$chat" "$work/text" --ctx 33
check "a last window of 1 id is left out" grep -q '(96 scored)' "$work/out"
# The same from the logits: a mean of -log softmax, and its standard error.
printf '%s\n' 97 98 99 100 101 102 103 104 105 106 >"$work/ids10"
try logits "$chat" --ids "$work/ids10" -o "$work/ten.npy"
by_hand=$(floats "$work/ten.npy" | awk '
    BEGIN { for (i = 0; i < 10; i++) id[i] = 97 + i }
    { row = int((NR - 1) / 262); k = (NR - 1) % 262; sum[row] += exp($1); if (k == id[row + 1]) own[row] = $1 }
    END { for (r = 0; r < 9; r++) { x = log(sum[r]) - own[r]; s += x; q += x * x }
          m = s / 9; e = sqrt((q - 9 * m * m) / 8 / 9)
          printf "perplexity %.2f +- %.2f (9 scored)", exp(m), exp(m) * e }')
try perplexity "$chat" "$work/text" --chars 10
by_linnet=$(awk '{ printf "perplexity %.2f +- %.2f (%d scored)", $2, $4, substr($5, 2) }' "$work/out")
check "perplexity equals the formula on the logits" [ "$by_hand" = "$by_linnet" ]
printf '\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9' >"$work/accents"
try perplexity "$chat" "$work/accents" --chars 3
check "--chars counts code points" grep -q '(5 scored)' "$work/out"
printf 'a' >"$work/one"
refuses "a text of one token" 1 "at least 2" perplexity "$chat" "$work/one"
refuses "an empty text" 1 "at least 2" perplexity "$chat" /dev/null
refuses "a text that is not UTF-8" 1 "not valid UTF-8" perplexity "$chat" "$work/surrogate"
refuses "no such text" 1 "cannot open" perplexity "$chat" "$work/none"

# ---- info
try info "$chat"
check "info for people" eval 'code_is 0 && grep -q "^architecture *llama" "$work/out" &&
    grep -q "layers 0-1 *softmax" "$work/out" && grep -q "^chat template *chatml" "$work/out"'
try info "$chat" --json
for key in architecture mixers windows dtypes params file_bytes weight_bytes activation_bytes \
    state_bytes context tokenizer template; do
    check "info --json has $key" grep -q "^  \"$key\": " "$work/out"
done
check "info --json has the depths" eval \
    'for d in 0 1024 8192 32768; do grep -q "^    \"$d\": [0-9]" "$work/out" || exit 1; done'
check "file_bytes is the file's" grep -q "\"file_bytes\": $(wc -c <"$chat")," "$work/out"
# state_at DEPTH: from the JSON. 2 layers x (key + value) x 2 heads x 8 wide = 64 numbers a token.
state_at() { sed -n "s/^    \"$1\": \([0-9]*\),*$/\1/p" "$work/out"; }
f16=$(state_at 1024)
check "no state at depth 0, at least 2 bytes a number at 1024" [ "$(state_at 0)" = 0 -a "$f16" -ge 131072 ]
check "eight times the depth, eight times the state" [ "$(state_at 8192)" = $((f16 * 8)) ]
try info "$chat" --json --kv f32
check "--kv f32: at least 4 bytes a number" [ "$(state_at 1024)" -ge 262144 -a "$(state_at 1024)" -gt "$f16" ]
cp "$work/out" "$work/f32"
try info "$chat" --json --activations exact
check "--activations exact implies it" [ "$(state_at 1024)" = "$(sed -n 's/^    "1024": \([0-9]*\),*$/\1/p' "$work/f32")" ]
try info "$vocab" --json
check "info of a vocabulary" eval 'code_is 0 && grep -q "\"mixers\": \[\]" "$work/out" && grep -q "\"vocabulary\": 262" "$work/out"'
try info "$chat" --check
check "--check finds nothing" grep -q "^check *every weight is finite" "$work/out"
try info "$work/nan.gguf" --check --quiet
check "--check names the tensor with a NaN" eval 'code_is 1 && err_has "blk.1.ffn_down.weight"'

# ---- states
mkdir "$work/s"
state=$work/s/one.state
seq -s ' ' 1 40 >"$work/ids_a"
seq -s ' ' 41 70 >"$work/ids_b"
cat "$work/ids_a" "$work/ids_b" >"$work/ids_ab"
for act in exact auto; do
    try logits "$bare" --ids "$work/ids_ab" -o "$work/ab.npy" --activations $act --quiet
    try logits "$bare" --ids "$work/ids_a" -o "$work/a.npy" --activations $act --save-state "$state" --quiet
    check "logits --save-state ($act)" eval 'code_is 0 && [ "$(stat -c %a "$state")" = 600 ]'
    try logits "$bare" --ids "$work/ids_b" -o "$work/b.npy" --activations $act --load-state "$state" --chunk 7 --quiet
    rows_b=$((30 * ($(stat -c %s "$work/ab.npy") - 128) / 70))
    check "logits of A saved, then B: the tail of A followed by B ($act)" eval \
        'cmp -s <(tail -c $rows_b "$work/b.npy") <(tail -c $rows_b "$work/ab.npy")'
done
refuses "another kv" 1 "as f16, the session as f32" \
    logits "$bare" --ids "$work/ids_b" -o "$work/s/no.npy" --load-state "$state"
refuses "another model" 1 "another model" run "$chat" -p x --load-state "$state"
refuses "no room behind the state" 1 "room after the loaded state" \
    logits "$bare" --ids "$work/ids_b" -o "$work/s/no.npy" --activations auto --load-state "$state" --ctx 50
refuses "no room for the state" 1 "40 tokens, more than the context of 39" \
    logits "$bare" --ids "$work/ids_b" -o "$work/s/no.npy" --activations auto --load-state "$state" --ctx 39
refuses "no such state" 1 "$work/none.state" run "$chat" -p x --load-state "$work/none.state"
refuses "a folder as a state" 1 "is a folder" run "$chat" -p x --load-state "$work/s"
refuses "a model as a state" 1 "not a saved state" run "$chat" -p x --load-state "$chat"
head -c 1000 "$state" >"$work/s/cut"
refuses "half a state" 1 "truncated: 1000 of" run "$chat" -p x --load-state "$work/s/cut"
{ head -c 900 "$state"; printf X; tail -c +902 "$state"; } >"$work/s/bad"
refuses "a damaged state" 1 "checksum" run "$chat" -p x --load-state "$work/s/bad"
: >"$work/s/empty"
refuses "an empty state" 1 "empty" run "$chat" -p x --load-state "$work/s/empty"
rm "$work/s/"*
warm=(--temp 1 --seed 5 --quiet)
try run "$chat" -p abc -n 8 "${warm[@]}"
cp "$work/out" "$work/whole"
try run "$chat" -p abc -n 3 "${warm[@]}" --save-state "$state"
check "run --save-state" code_is 0
try run "$chat" -p "" -n 5 "${warm[@]}" --load-state "$state" --stats
check "run --load-state feeds nothing anew" err_has "tok/s (0), decode"
try run "$chat" -p "" -n 0 "${warm[@]}" --load-state "$state" --save-state "$state.2" --stats
check "saved again, it is the same" cmp -s "$state" "$state.2"
try run "$chat" -p "" -n 5 "${warm[@]}" --load-state "$state" --save-state "$state.3"
try run "$chat" -p abc -n 8 "${warm[@]}" --save-state "$state.4"
check "3 and 5 tokens more are 8 tokens" cmp -s "$state.3" "$state.4"
try run "$chat" -p x -n 1 "${say_A[@]}" --load-state "$state" --stats
check "the prompt is appended, without BOS" err_has "tok/s (1), decode"
try run "$chat" -p x -n 1 --save-state "$work/none/x.state" --quiet
check "save into no folder" eval 'code_is 1 && err_has "none/x.state"'
check "no leftovers of states" [ "$(ls -A "$work/s" | wc -l)" = 4 ]

# ---- bench
fast=(-p 8 -n 3 -r 2 -t 1)
try bench -m "$chat" "${fast[@]}" -pg 4,2 -d 0,70 -b 1,3
check "bench: a row per test, depth and batch" eval 'code_is 0 && [ "$(grep -c "^| chat |" "$work/out")" = 12 ]'
check "and the columns of the contract" eval 'head -1 "$work/out" | cmp -s - <(echo "| model | params | size | \
arch/mixers | backend | threads | B | test | d | t/s | TTFT ms | state/seq | peak RSS | peak VRAM |")'
check "every row has speed and memory" eval \
    '[ "$(grep -cE "\| [0-9]+\.[0-9] \([0-9]+\.[0-9] ± [0-9]+\.[0-9]\) \| ([0-9.]+|-) \| [0-9.]+ kB \| [0-9.]+ MB \| - \|$" "$work/out")" = 12 ]'
check "in order" eval 'cut -d"|" -f8-10 "$work/out" | tail -n +3 | head -7 | tr -d "\n" | tr "|" "," | cmp -s - <(printf \
" 1 , pp8 , 0  1 , tg3 , 0  1 , pg4,2 , 0  1 , pp8 , 70  1 , tg3 , 70  1 , pg4,2 , 70  3 , pp8 , 0 ")'
check "what a step moves is said for rows that decode" [ "$(grep -c "tg3 @ d.* of weights and . x .* of state" "$work/err")" = 4 ]
try bench -m "$chat" -p 8 -n 0 -r 2 -t 1 --quiet
check "0 leaves a test out, --quiet is quiet" eval '[ "$(wc -l <"$work/out")" = 3 ] && [ ! -s "$work/err" ] && ! grep -q tg "$work/out"'
try bench -m "$chat" -m "$bare" "${fast[@]}" -o csv --quiet
check "bench -o csv: one head, a row per model and test" eval 'code_is 0 && [ "$(wc -l <"$work/out")" = 5 ] &&
    head -1 "$work/out" | grep -q "^build_commit,build_number,cpu_info,.*,model_filename,.*,samples_ns," &&
    [ "$(grep -c "$bare" "$work/out")" = 2 ]'
python=$(command -v .venv/bin/python || command -v python3)
cat >"$work/rows.py" <<'END'
import json, statistics, sys
lines, n = sys.argv[1] == "jsonl", int(sys.argv[2])
text = sys.stdin.read()
rows = [json.loads(l) for l in text.splitlines()] if lines else json.loads(text)
assert isinstance(rows, list) and len(rows) == n, len(rows)
names = """build_commit build_number cpu_info gpu_info backends model_filename model_hash model_type model_size
    model_n_params n_batch n_threads n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts
    samples_ns samples_ts n_seqs ttft_ns state_bytes_model state_bytes_alloc weight_bytes_read_per_token
    peak_rss_bytes peak_vram_bytes dtype_state kv activations architecture mixers oom isa""".split()
for r in rows:
    assert not set(names) - set(r), set(names) - set(r)
    assert list(r) == list(rows[0])
    if r["oom"]:
        assert r["samples_ns"] == [] and r["median_ts"] is None and r["error"], r
        continue
    tokens = r["n_seqs"] * (r["n_prompt"] + r["n_gen"])
    assert len(r["samples_ns"]) == 3 and all(x > 0 for x in r["samples_ns"])
    for ns, ts in zip(r["samples_ns"], r["samples_ts"]):
        assert abs(ts - tokens * 1e9 / ns) < 1e-6 * ts
    close = lambda x, y: abs(x - y) <= 1e-6 * abs(y) + 1
    assert close(r["avg_ns"], statistics.mean(r["samples_ns"]))
    assert close(r["stddev_ns"], statistics.stdev(r["samples_ns"]))
    assert close(r["median_ts"], statistics.median(r["samples_ts"]))
    assert close(r["seq_ts"], r["median_ts"] / r["n_seqs"])
    assert (r["ttft_ns"] is None) == (r["n_prompt"] == 0) and (r["ttft_ns"] or 0) <= max(r["samples_ns"])
    assert r["state_bytes_alloc"] > 0 and 1e6 < r["peak_rss_bytes"] < 1e9 and r["n_threads"] == 2
END
# rows FORMAT N ARGUMENTS...: N rows whose numbers agree with each other; skipped without Python.
rows() {
    local format=$1 n=$2
    shift 2
    try bench "$@" -r 3 -t 2 -o "$format" --quiet
    check "bench -o $format ${*:2}" eval 'code_is 0 && { [ -z "$python" ] || "$python" "$work/rows.py" $format $n <"$work/out"; }'
}
rows json 6 -m "$chat" -p 8 -n 3 -pg 5,2 -b 1,2
rows json 1 -m "$chat" -p 0 -n 3
rows jsonl 4 -m "$chat" -p 8 -n 3 -d 5,66 -b 2
# state_model MODEL KV: bytes by the papers' formulas, after 100 tokens.
state_model() {
    try bench -m "tests/data/models/$1.gguf" -p 100 -n 0 -r 1 -t 1 -o jsonl --kv "$2" --quiet
    sed 's/.*"state_bytes_model":\([0-9]*\),.*"dtype_state":"\([^"]*\)".*/\1 \2/' "$work/out"
}
check "softmax: 2 layers x 2 x 1 KV heads x 16 x 100" [ "$(state_model llama_f16 f32)" = "25600 f32" ]
check "the same as f16" [ "$(state_model llama_f16 f16)" = "12800 f16" ]
check "a window of 13: 2 layers x 2 x 1 x 16 x 13" [ "$(state_model mistral_window f16)" = "1664 f16" ]
check "Taylor: 2 layers x 2 heads x (20 + 1) x 153" [ "$(state_model based_taylor_16 f16)" = "51408 f32" ]
check "gated delta net with a softmax layer" [ "$(state_model gated_delta_hybrid f16)" = "4864 f16+f32" ]
check "hedgehog: 2 layers x 3 heads x (14 + 1) x 2 x 9" [ "$(state_model hedgehog_softmax f16)" = "6048 f32" ]
try bench -m "$chat" "${fast[@]}" -oe jsonl --save "$work/rows.jsonl" --quiet
check "rows on stderr and in a file" eval 'code_is 0 && [ "$(grep -c "^{" "$work/err")" = 2 ] && cmp -s "$work/err" "$work/rows.jsonl"'
try bench -m "$chat" "${fast[@]}" --activations exact -o jsonl --no-mmap --no-pin --isa generic --quiet
check "flags reach the process that measures" eval 'code_is 0 && grep -q "\"dtype_state\":\"f32\"" "$work/out" &&
    grep -q "\"isa\":\"generic\"" "$work/out" && grep -q "\"pinned\":false" "$work/out"'
if (ulimit -v 400000 && "$linnet" --version >/dev/null 2>&1); then # a sanitizer needs more
    (
        ulimit -v 400000
        "$linnet" bench -m "$chat" -p 0 -n 3 -d 20000 -b 1,512 -r 3 -t 2 -o json >"$work/out" 2>"$work/err"
    )
    code=$?
    check "memory that does not suffice is a row, and the others are there" eval \
        'code_is 0 && [ "$(grep -c "\"oom\":false" "$work/out")" = 1 ] && [ "$(grep -c "\"oom\":true" "$work/out")" = 1 ] && err_has "no memory for"'
    check "with the same keys" eval '[ -z "$python" ] || "$python" "$work/rows.py" json 2 <"$work/out"'
fi
# while_measuring SIGNAL of|child: sent to bench, or to the process that measures a row.
while_measuring() {
    "$linnet" bench -m "$chat" -p 4 -n 300000,1 -r 1 -t 1 -o json --save "$work/part.jsonl" --quiet >"$work/out" 2>"$work/err" &
    local pid=$! tries=0 child=""
    while [ -z "$child" ] && [ $tries -lt 200 ]; do
        sleep 0.05 # after the first row: before it, the child would be that row's
        [ -s "$work/out" ] && child=$(cat "/proc/$pid/task/$pid/children")
        tries=$((tries + 1))
    done
    child=${child%% *}
    if [ "$2" = child ]; then kill "-$1" "$child"; else kill "-$1" $pid; fi
    wait $pid
    code=$?
    for tries in 1 2 3 4 5 6 7 8 9 10; do [ -e "/proc/$child" ] && sleep 0.1; done
    [ ! -e "/proc/$child" ]
}
if [ -r "/proc/$$/task/$$/children" ]; then
    check "SIGTERM ends the measuring process, too" while_measuring TERM of
    check "what was measured before is whole" eval 'code_is 143 && [ "$(tail -n 1 "$work/out")" = "]" ] && [ "$(wc -l <"$work/part.jsonl")" = 1 ]'
    while_measuring KILL child
    check "a process that the kernel kills is a row without memory" eval \
        'code_is 0 && grep -q "\"oom\":true,\"error\":\"the kernel killed" "$work/out" && [ "$(wc -l <"$work/part.jsonl")" = 3 ]'
    while_measuring USR1 child
    check "another signal is an error" eval 'code_is 1 && err_has "signal 10 ended"'
fi
# Random models of every kind (bench/random_model.c) load and run.
random_model=$(dirname "$linnet")/bench/random_model
[ -x "$random_model" ] || random_model=build/bench/random_model
# makes ARCHITECTURE MIXERS PATTERN TYPE: a toy model that bench runs and describes so.
makes() {
    "$random_model" toy "$3" "$4" "$work/toy.gguf" || return 1
    try bench -m "$work/toy.gguf" -p 70 -n 2 -r 1 -t 1 -d 3 -b 2 --quiet
    code_is 0 && [ "$(grep -cF "| $1 $2 |" "$work/out")" = 2 ]
}
if [ -x "$random_model" ]; then
    for mixer in lolcats hedgehog based_taylor short_conv delta_net gated_delta_net; do
        check "random_model $mixer" makes linnet $mixer $mixer q4_0
    done
    check "random_model softmax" makes llama softmax softmax q4_K
    check "random_model qwen35" makes qwen35 "3 gated_delta_net + 1 softmax" qwen35 q4_K
    check "random_model based" makes linnet "2 short_conv + 1 based_taylor + 1 softmax" based f16
    check "random_model of a pattern" makes linnet "3 delta_net + 1 softmax" 'delta_net*2,softmax:8' q6_K
    for pattern in soft 'softmax*' 'softmax*0' 'softmax*65' softmax:0 delta_net:4 "" softmax, ,; do
        check "random_model '$pattern'" eval '! "$random_model" toy "$pattern" f32 "$work/x.gguf" 2>"$work/err" && [ ! -e "$work/x.gguf" ]'
    done
fi
misuses "bench without a model" "-m MODEL is missing" bench
misuses "bench and an argument" "unexpected argument" bench "$chat"
misuses "bench names an unknown flag" "unknown flag --loud" bench -m "$chat" --loud
misuses "bench without a test" "leave every test out" bench -m "$chat" -p 0 -n 0
misuses "bench -o xml" "-o expects one of" bench -m "$chat" -o xml
for list in "" , 1, ,1 "1 2" 1,,2 -1 nan 1e3 0x10 99999999999999999999 16777217; do
    for f in -p -n -d -b -t; do
        misuses "bench $f '$list'" "$f expects at most 64 whole numbers" bench -m "$chat" "$f" "$list"
    done
done
misuses "bench -b 0" "from 1 to" bench -m "$chat" -b 0
misuses "bench -p of too many" "at most 64" bench -m "$chat" -p "$(seq -s, 65)"
for pair in 1 1,2,3 1, ""; do
    misuses "bench -pg '$pair'" "-pg expects 2 whole numbers" bench -m "$chat" -pg "$pair"
done
misuses "bench -r 0" "-r expects" bench -m "$chat" -r 0
refuses "bench of no file" 1 "$work/none.gguf" bench -m "$chat" -m "$work/none.gguf" "${fast[@]}"
refuses "bench of a vocabulary" 1 "without weights" bench -m "$vocab" "${fast[@]}"
refuses "bench beyond learned positions" 1 "a test of 168 tokens, but this model has learned positions for 160" \
    bench -m "$gpt2" "${fast[@]}" -n 0 -d 0,160
refuses "bench with a backend that is not built" 1 "cuda" bench -m "$chat" "${fast[@]}" --backend cuda
refuses "bench into no folder" 1 "$work/none/x" bench -m "$chat" "${fast[@]}" --save "$work/none/x"
"$linnet" bench -m "$chat" "${fast[@]}" --quiet >/dev/full 2>"$work/err"
code=$?
: >"$work/out"
check "bench onto a full disk" refusal 1 "No space left"

# ---- recall (tests/test_recall.c looks at its insides)
mqar=mqar:V=128,L=32,K=4,n=3
try recall -m "$chat" -m "$gpt2" --task "$mqar" --task "$mqar,P=2" -o json --save "$work/recall.jsonl" --dump "$work/dump.jsonl" --quiet
check "recall: models x tasks, as one array, and as lines in a file" eval 'code_is 0 && [ "$(grep -c "\"task\":\"mqar\"" "$work/out")" = 4 ] &&
    [ "$(head -c 1 "$work/out")" = "[" ] && [ "$(tail -n 1 "$work/out")" = "]" ] && [ "$(wc -l <"$work/recall.jsonl")" = 4 ] &&
    [ "$(grep -c "\"ids\":\[" "$work/dump.jsonl")" = 12 ]'
cat >"$work/recall.py" <<'END'
import json, sys
rows = json.load(sys.stdin)
names = """model_filename model_hash model_type model_size model_n_params task preset params len depth twice cut bos
    data_hash seed view prompt_tokens_mean prompt_tokens_max n_items n hits acc acc_low acc_high n_cut_off n_skipped
    ppl_recall ppl_other state_bytes_model state_bytes_alloc eval_seconds eval_ts dtype_state kv activations
    architecture mixers n_threads backends isa build_commit""".split()
for r in rows:
    assert not set(names) - set(r), set(names) - set(r)
    assert list(r) == list(rows[0])
    assert r["acc"] == r["hits"] / r["n"] and r["acc_low"] <= r["acc"] <= r["acc_high"] and r["n"] == 12
    assert r["len"] == r["prompt_tokens_mean"] == r["prompt_tokens_max"] == 32 and r["eval_ts"] > 0
    assert r["data_hash"] == rows[0 if "P=1" in r["params"] else 1]["data_hash"]
assert len({r["model_hash"] for r in rows}) == 2 and len({r["data_hash"] for r in rows}) == 2
END
check "with the same keys, whose numbers agree" eval '[ -z "$python" ] || "$python" "$work/recall.py" <"$work/out"'
hash_in() { sed 's/.*"model_hash":"\([0-9a-f]*\)".*/\1/' "$1" | head -1; }
hash=$(hash_in "$work/recall.jsonl")
try bench -m "$chat" "${fast[@]}" -o jsonl --quiet
check "bench gives the model the same hash" [ "$(hash_in "$work/out")" = "$hash" ]
for format in md csv jsonl; do
    try recall -m "$chat" --task "$mqar" -o $format --quiet
    check "recall -o $format" eval 'code_is 0 && [ "$(wc -l <"$work/out")" = '"$(case $format in md) echo 3 ;; csv) echo 2 ;; *) echo 1 ;; esac)"' ]'
done
for view in chunk recurrent both; do
    try recall -m "$chat" --task "$mqar" --task passkey --ctx 600 --n 2 --view $view -o csv --quiet
    check "recall --view $view" eval 'code_is 0 && [ "$(wc -l <"$work/out")" = 3 ]'
done
: >"$work/out" # what stands there from before must not end the wait: bash itself would get the signal
"$linnet" recall -m "$chat" --task mqar:V=256,L=32,K=4,n=2 --task mqar:V=256,L=250,K=4,n=20000 -o json --save "$work/part.jsonl" \
    --quiet >"$work/out" 2>"$work/err" &
pid=$!
for tries in $(seq 100); do [ -s "$work/out" ] && break; sleep 0.05; done
kill -TERM $pid
wait $pid
code=$?
check "SIGTERM keeps the rows that are there" eval 'code_is 143 && [ "$(tail -n 1 "$work/out")" = "]" ] && [ "$(wc -l <"$work/part.jsonl")" = 1 ]'
misuses "recall without a model" "-m MODEL is missing" recall --task passkey
misuses "recall with a seed that JSON does not hold" "--seed is 9223372036854775808, expected at most 9223372036854775807" recall -m "$chat" --task passkey --seed 9223372036854775808
misuses "recall without a task" "--task TASK is missing" recall -m "$chat"
misuses "recall names an unknown flag" "unknown flag --loud" recall -m "$chat" --loud
misuses "an unknown task lists them" \
    "unknown task 'sing'; the tasks are mqar passkey niah1 niah2 niah3 mk2 phonebook copy factbook ar:FILE jsonl:FILE" recall -m "$chat" --task sing:L=3
misuses "an unknown preset lists them" "--preset expects one of lmeval-v0 lmeval-v1 jrt jrt-twice, found 'mine'" \
    recall -m "$chat" --task jsonl:x --preset mine
misuses "an unknown parameter lists them" "mqar has no parameter 'X'; it has: V L K a P n fill" recall -m "$chat" --task mqar:X=1
misuses "a parameter of another task" "passkey has no parameter 'L'" recall -m "$chat" --task passkey:L=64
misuses "a parameter without a value" "mqar expects KEY=VALUE, found 'L'" recall -m "$chat" --task mqar:K=4,L
misuses "nothing after the colon" "expects KEY=VALUE after the colon" recall -m "$chat" --task mqar:
for value in "" 0 -1 12abc 1e3 99999999999999999999; do
    misuses "mqar:K='$value'" "K expects a whole number from 1" recall -m "$chat" --task "mqar:K=$value"
done
for value in "" 0 1.01 nan 1e999; do
    misuses "mqar:a='$value'" "a expects a number above 0, at most 1" recall -m "$chat" --task "mqar:a=$value"
done
misuses "mqar:fill=blue" "fill expects one of random zero, found 'blue'" recall -m "$chat" --task mqar:fill=blue
misuses "mqar of an odd length" "an even L of at least 2 K P + 2 K = 16, found L=63" recall -m "$chat" --task mqar:L=63,K=4
misuses "mqar too short" "an even L of at least 2 K P + 2 K = 256, found L=128" recall -m "$chat" --task mqar:L=128
misuses "mqar of an odd V" "an even V" recall -m "$chat" --task mqar:V=63
misuses "mqar with more pairs than keys" "at most V/2 - 1 = 31 pairs" recall -m "$chat" --task mqar:V=64,L=256,K=32
misuses "phonebook of two" "N from 3 to 4096" recall -m "$chat" --task phonebook:N=2
misuses "ar without a file" "ar expects a file" recall -m "$chat" --task ar
misuses "jsonl without a file" "jsonl expects a file" recall -m "$chat" --task jsonl:
misuses "--len of mqar" "--len means nothing to mqar" recall -m "$chat" --task mqar --len 64
misuses "--len and phonebook:N" "--len means nothing to phonebook" recall -m "$chat" --task phonebook:N=9 --len 64
misuses "--depths of factbook" "--depths means nothing to factbook" recall -m "$chat" --task factbook --depths 0
misuses "--preset of passkey" "--preset means nothing to passkey" recall -m "$chat" --task passkey --preset jrt
misuses "--absent of passkey" "--absent means nothing" recall -m "$chat" --task passkey --absent skip
misuses "--max-ctx of two tasks" "--max-ctx means nothing to any of these tasks" recall -m "$chat" --task passkey --task copy --max-ctx 64
misuses "--twice of ar" "--twice does not go with ar" recall -m "$chat" --task ar:x --twice
misuses "--twice of lm-eval's prompts" "--twice does not go with jsonl and preset lmeval-v1" recall -m "$chat" --task jsonl:x --twice
misuses "--view of nothing" "--view expects one of" recall -m "$chat" --task passkey --view sideways
misuses "--depths 101" "from 0 to 100" recall -m "$chat" --task passkey --depths 101
misuses "--min-acc 1.5" "--min-acc expects a number from 0 to 1" recall -m "$chat" --task passkey --min-acc 1.5
misuses "terrace-hf token by token" "terrace-hf is one prefill" recall -m "$chat" --task passkey --view both --window-mode terrace-hf
refuses "recall of no file" 1 "$work/none.gguf" recall -m "$work/none.gguf" --task passkey
refuses "recall without a vocabulary" 1 "has no vocabulary: of the tasks, mqar and copy need none" recall -m "$bare" --task passkey
refuses "recall of a vocabulary" 1 "without weights" recall -m "$vocab" --task passkey
refuses "recall beyond the context" 1 "passkey of 1024 tokens is longer than the context of $chat, 256; --ctx N allows more" \
    recall -m "$chat" --task passkey --len 1024
refuses "recall beyond learned positions" 1 "mqar of 256 tokens is longer than the context of $gpt2, 160: its positions are learned" \
    recall -m "$gpt2" --task mqar:V=64,K=8
refuses "ids that the model does not have" 1 "mqar needs ids below V=8192, but $chat has 262" recall -m "$chat" --task mqar
refuses "the second model is checked before the first runs" 1 "mqar needs ids below V=200, but $gpt2" \
    recall -m "$chat" -m "$gpt2" --task mqar:V=200,L=32,K=4
refuses "no such documents" 1 "cannot open $work/none.jsonl" recall -m "$chat" --task "jsonl:$work/none.jsonl"
refuses "no such text" 1 "cannot open $work/none" recall -m "$chat" --task "ar:$work/none"
refuses "no such haystack" 1 "cannot open $work/none" recall -m "$chat" --task "niah2:haystack=$work/none"
printf 'abc\xff' >"$work/bytes"
refuses "a text that is not UTF-8" 1 "not valid UTF-8: byte 0xff at offset 3" recall -m "$chat" --task "ar:$work/bytes"
refuses "rows into no folder" 1 "$work/none/x" recall -m "$chat" --task "$mqar" --save "$work/none/x"
refuses "prompts into a folder" 1 "it is a folder" recall -m "$chat" --task "$mqar" --dump "$work"
# The committed models answer as their cards say (models/README.md).
check "a softmax model finds every pair again" \
    "$linnet" recall -m models/mqar-softmax-d64.gguf --task mqar:L=64,K=16,n=50 --min-acc 0.99 --quiet
check "a DeltaNet model nearly all" \
    "$linnet" recall -m models/mqar-delta-d64-h1.gguf --task mqar:L=64,K=16,n=50 --min-acc 0.97 --quiet
check "a window of 32 does not reach 128 tokens back" \
    eval '! "$linnet" recall -m models/mqar-swa-d64-w32.gguf --task mqar:L=128,K=32,n=50 --min-acc 0.1 --quiet'
refuses "recall with a backend that is not built" 1 "cuda" recall -m "$chat" --task "$mqar" --backend cuda
"$linnet" recall -m "$chat" --task "$mqar" --quiet >/dev/full 2>"$work/err"
code=$?
: >"$work/out"
check "recall onto a full disk" refusal 1 "No space left"
"$linnet" recall -m "$chat" --task "$mqar" --quiet --save /dev/full >"$work/out" 2>"$work/err"
code=$?
check "rows onto a full disk" eval 'code_is 1 && err_has "No space left"'
# ---- pareto (tests/test_pareto.py has what its outputs say)
bench_row='"model_filename":"a.gguf","n_prompt":0,"n_gen":4,"n_depth":0,"n_seqs":1,"median_ts":9'
recall_row='"model_filename":"a.gguf","task":"mqar","params":"L=64","n":4,"hits":2,"acc":0.5,"acc_low":0.1,"acc_high":0.9,"state_bytes_model":64,"state_bytes_alloc":64'
echo "{$recall_row}" >"$work/r.jsonl"
printf '[{%s}]' "$bench_row" >"$work/b.json"
for x in "--x state_bytes_model" "--x state_bytes_alloc" "--x tg_ts" "--accounting alloc"; do
    # shellcheck disable=SC2086
    try pareto "$work/r.jsonl" "$work/b.json" -o "$work/chart.svg" $x
    check "pareto $x" eval 'code_is 0 && silent && err_has "1 on the frontier" && [ "$(grep -c "class=.point" "$work/chart.svg")" = 1 ]'
done
"$linnet" pareto - "$work/b.json" -o "$work/chart.md" --quiet <"$work/r.jsonl" >"$work/out" 2>"$work/err"
code=$?
check "pareto reads standard input" eval 'code_is 0 && silent && [ ! -s "$work/err" ] && grep -q "| a |" "$work/chart.md"'
try pareto --help
check "pareto --help has the rules of fairness" grep -q "fair comparison" "$work/out"
misuses "pareto without a file" "FILE is missing" pareto -o "$work/x.svg"
misuses "pareto without -o" "-o PATH is missing" pareto "$work/r.jsonl"
misuses "pareto into a picture of another kind" "ends in .svg, .csv, .md or .html" pareto "$work/r.jsonl" -o x.png
misuses "pareto --x of nothing" "--x expects one of" pareto "$work/r.jsonl" -o x.svg --x size
misuses "pareto --y of nothing" "--y expects one of" pareto "$work/r.jsonl" -o x.svg --y bleu
misuses "pareto --depth -1" "--depth expects" pareto "$work/r.jsonl" -o x.svg --depth -1
misuses "pareto with two accountings" "contradicts" pareto "$work/r.jsonl" -o x.svg --accounting alloc --x state_bytes_model
refuses "pareto of no file" 1 "cannot open $work/none" pareto "$work/none" -o "$work/x.svg"
echo "{" >"$work/bad"
refuses "pareto of what is not JSON" 1 "$work/bad, line 1: not JSON" pareto "$work/bad" -o "$work/x.svg"
refuses "pareto of a folder" 1 "cannot read $work: Is a directory" pareto "$work" -o "$work/x.svg"
refuses "pareto without recall" 1 "nothing to join: no row of recall" pareto "$work/b.json" -o "$work/x.svg"
refuses "pareto into no folder" 1 "cannot write $work/none/x.svg" pareto "$work/r.jsonl" -o "$work/none/x.svg"
mkdir "$work/folder.svg"
refuses "pareto onto a folder" 1 "cannot write $work/folder.svg" pareto "$work/r.jsonl" -o "$work/folder.svg"
rmdir "$work/folder.svg"
check "pareto left no file behind" eval '[ ! -e "$work/x.svg" ] && ! ls "$work"/*.svg.* "$work"/x.* >/dev/null 2>&1'

# ---- quantize
mkdir "$work/q"
for type in f32 f16 bf16 q8_0 q4_0 q4_1 q4_K q6_K; do
    try quantize "$chat" "$work/q/$type.gguf" $type
    check "quantize $type" code_is 0
    try run "$work/q/$type.gguf" -p hi -n 2 "${say_A[@]}"
    check "and it runs" out_is AA
done
try quantize "$chat" "$work/q/tied.gguf" q4_0
check "quantize says that a tied embedding stays q8_0" eval 'err_has token_embd.weight && err_has q8_0'
try info "$work/q/q4_K.gguf" --json
check "rows of 32: q4_K falls back to q5_0" grep -q '"q5_0": 14' "$work/out"
refuses "quantize no such file" 1 "$work/none.gguf" quantize "$work/none.gguf" "$work/q/x.gguf" q8_0
refuses "quantize a truncated file" 1 "$work/cut.gguf" quantize "$work/cut.gguf" "$work/q/x.gguf" q8_0
refuses "quantize into no folder" 1 "$work/none/x.gguf" quantize "$chat" "$work/none/x.gguf" q8_0
cp "$chat" "$work/same.gguf"
refuses "quantize onto itself" 1 "same file" quantize "$work/same.gguf" "$work/same.gguf" q8_0
check "the original is untouched" cmp -s "$chat" "$work/same.gguf"
check "no leftovers" [ "$(ls -A "$work/q" | wc -l)" = 9 ]

# ---- chat
# talk LINES ARGUMENTS...: a conversation from a pipe.
talk() {
    printf '%s' "$1" >"$work/lines"
    shift
    in=$work/lines
    try chat "$chat" --quiet -n 3 "${say_A[@]}" "$@"
    in=/dev/null
}
talk $'one\ntwo\n'
check "a turn a line, an answer a line" out_is $'AAA\nAAA'
check "nothing on stderr when quiet" [ ! -s "$work/err" ]
talk 'no newline at the end'
check "a last line without a newline" out_is AAA
talk ''
check "no line, no answer" eval 'code_is 0 && silent'
talk $'one\n\n  \ntwo\r\n'
check "blank lines are no turns" out_is $'AAA\nAAA'
talk $'one\n/quit\ntwo\n'
check "/quit leaves" out_is AAA
talk $'//slash\n'
check "// is a turn" out_is AAA
talk $'/help\n'
check "/help is talk" eval 'code_is 0 && silent && err_has /undo'
for command in /save /load; do
    talk "$command"$'\none\n'
    check "$command without a file" eval 'code_is 1 && err_is_one_line && err_has "$command expects a file name"'
done
talk $'/sing\none\n'
check "an unknown command is named" eval 'out_is AAA && err_has "unknown command /sing"'
talk $'one\n/reset\ttwo\ntwo\n/stats\n'
check "/reset forgets, /stats counts" eval 'out_is $'"'AAA\nAAA'"' && err_has "turns: 1, "'
talk $'one\ntwo\n/undo\n/stats\n'
check "/undo takes back" err_has "turns: 1, "
talk $'one\n/retry\n/stats\n'
check "/retry answers again" eval 'out_is $'"'AAA\nAAA'"' && err_has "turns: 1, "'
talk $'/undo\none\n'
check "nothing to take back" eval 'code_is 1 && err_has "no turn to take back"'
talk $'/retry\n'
check "nothing to retry" eval 'code_is 1 && err_has "no answer"'
talk $'one\n\xff\ntwo\n'
check "a turn that is not UTF-8 is dropped, the chat goes on" eval \
    'code_is 1 && [ "$(cat "$work/out")" = $'"'AAA\nAAA'"' ] && err_has "not valid UTF-8"'
talk $'one\ntwo\n' --ctx 30
check "a turn that does not fit is dropped with numbers" eval \
    'code_is 1 && err_has "the context of 30 has room for" && err_has "/reset"'
talk $'one\n/reset\ntwo\n' --ctx 30
check "after /reset there is room again" out_is $'AAA\nAAA'
# What a second turn feeds is what the template adds, no token twice.
cat >"$work/both.jsonl" <<'END'
{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "AAA"}, {"role": "user", "content": "two"}], "add_generation_prompt": true}
END
try tokenize "$chat" --messages "$work/both.jsonl"
n=$(wc -w <"$work/out")
talk $'one\ntwo\n' --system S --stats
check "the second turn feeds only what is new" err_has "tok/s ($((n - 3))), decode"
# The session of a conversation is the one that a single prefill of the same tokens makes.
talk $'one\ntwo\n' --system S --stats
sed 's/.*logits //' "$work/err" >"$work/hash"
sed 's/], "add_generation_prompt": true/, {"role": "assistant", "content": "AAA"}]/' "$work/both.jsonl" >"$work/all.jsonl"
try tokenize "$chat" --messages "$work/all.jsonl"
sed 's/ 261 10$//' "$work/out" >"$work/ids" # up to the end of the answer
try logits "$chat" --ids "$work/ids" -o "$work/all.npy" --activations auto --stats --quiet
check "two turns give the logits of one prefill" eval 'sed "s/.*logits //" "$work/err" | cmp -s - "$work/hash"'
# States of a conversation. The logits of the last --stats line tell two sessions apart.
last_hash() { sed -n 's/.*logits //p' "$work/err" | tail -1; }
talk $'one\ntwo\nthree\n' --stats
three=$(last_hash)
talk $'one\ntwo\n' --stats
two=$(last_hash)
talk $'one\ntwo\n/save '"$work/s/chat.state"$' \nthree\n' --stats
check "/save changes nothing" [ "$(last_hash)" = "$three" ]
talk $'/load '"$work/s/chat.state"$'\nthree\n' --stats
check "/load goes on where /save was" eval 'code_is 0 && [ "$(last_hash)" = "$three" ]'
talk $'other\n/load '"$work/s/chat.state"$'\nnot this\n/undo\nthree\n/retry\n/undo\nthree\n' --stats
check "/undo and /retry after /load" eval 'code_is 0 && [ "$(last_hash)" = "$three" ]'
talk $'three\n' --load-state "$work/s/chat.state" --save-state "$work/s/chat3.state" --stats
check "chat --load-state" eval 'code_is 0 && [ "$(last_hash)" = "$three" ]'
talk '' --load-state "$work/s/chat3.state" --stats
check "chat --save-state" eval 'code_is 0 && [ "$(last_hash)" = "$three" ]'
talk $'/undo\n' --load-state "$work/s/chat3.state"
check "what was before the load cannot be taken back" eval 'code_is 1 && err_has "no turn to take back"'
talk $'one\n/load '"$work/none.state"$'\ntwo\n/load '"$chat"$'\nthree\n' --stats
check "a /load that fails leaves the conversation" eval 'code_is 1 && [ "$(last_hash)" = "$three" ]'
talk $'/load '"$work/s/chat.state"$'\n/reset\none\ntwo\n' --stats
check "/reset forgets what was loaded" [ "$(last_hash)" = "$two" ]
talk $'one\n/save '"$work/none/x"$'\ntwo\n' --stats
check "a /save that fails is told" eval 'code_is 1 && err_has "none/x" && [ "$(last_hash)" = "$two" ]'
talk $'one\n' --stop AA --save-state "$work/s/stop.state"
talk $'two\n' --load-state "$work/s/stop.state" --stats
check "a conversation that was cut by --stop can be saved" code_is 0
talk $'/load '"$work/s/chat.state"$'\nthree\nfour\n' --stop AA --stats
check "after a --stop the loaded state is continued anew" eval 'code_is 0'
talk $'/save '"$work/s/nothing.state"$'\n'
talk $'one\ntwo\n' --load-state "$work/s/nothing.state" --stats
check "an empty conversation can be saved" [ "$(last_hash)" = "$two" ]

talk $'one\n/fork a\ntwo\n/fork\nother\n/switch a\ntwo\nthree\n' --stats
check "/fork and /switch" eval 'code_is 0 && [ "$(last_hash)" = "$three" ]'
talk $'one\n/fork a\n/switch a\nnot this\n/switch main\ntwo\n/switch a\n/undo\n/switch main\n' --stats
check "branches do not touch each other" [ "$(last_hash)" = "$two" ]
talk $'one\ntwo\n/fork a\nlost\n/switch a\n/undo\n/undo\none\ntwo\nthree\n' --stats
check "a fork can undo what was before it" eval 'code_is 0 && [ "$(last_hash)" = "$three" ]'
talk $'/fork\n/fork\n/switch\n'
check "/switch lists" eval 'code_is 0 && err_has "you are in main; there is also fork1, fork2"'
talk $'one\n/fork a\n/fork a\n'
check "/fork twice" eval 'code_is 1 && err_has "there is a a already"'
talk $'one\n/fork main\n'
check "/fork as itself" code_is 1
talk $'one\n/switch b\ntwo\n' --stats
check "/switch to nowhere" eval 'code_is 1 && err_has "there is no b" && [ "$(last_hash)" = "$two" ]'
ten=$(seq -f 'turn %g' 1 10)
talk $'one\ntwo\n'"$ten"$'\n/undo\n/undo\n/undo\n/undo\n/undo\n/undo\n/undo\n/undo\n/undo\n/undo\nthree\n' --ctx 4000 --stats
check "ten turns taken back, more than there are snapshots" eval 'code_is 0 && [ "$(last_hash)" = "$three" ]'
# A stop text leaves the session with more than was shown: the next turn starts from the messages.
talk $'one\ntwo\n' --stop AA --stats
check "after a --stop the conversation is fed anew" out_is $'\n'
try chat "$vocab"
check "chat without a model" code_is 1
refuses "chat without a vocabulary" 1 "$bare has no chat template; choose one with --template" chat "$bare"
if script -qec true /dev/null >/dev/null 2>&1; then # a container may lack pseudo-terminals
    pty() { script -qec "$linnet chat $chat -n 3 ${say_A[*]} $*" /dev/null; }
    { sleep 0.5; printf 'one\n'; sleep 0.5; printf '/quit\n'; sleep 0.2; } | pty >"$work/out" 2>"$work/err"
    check "a terminal gets a prompt and the name" eval \
        'grep -q "^> " "$work/out" && grep -q "AAA" "$work/out" && grep -q "tiny chat" "$work/out"'
    { sleep 0.5; printf '\003'; sleep 0.3; printf 'one\n'; sleep 0.5; printf '\004'; sleep 0.2; } | pty >"$work/out" 2>"$work/err"
    check "Ctrl-C at the prompt does not leave, Ctrl-D does" eval \
        'grep -q "Ctrl-D or /quit leaves" "$work/out" && grep -q "AAA" "$work/out"'
    check "a short load shows no progress" eval '! grep -q "load:" "$work/out"'
    sleep 3 | script -qec "timeout --foreground -k 1 1 $linnet chat $chat" /dev/null >"$work/out" 2>"$work/err"
    check "SIGTERM at the prompt ends it" eval \
        'grep -q "^> " "$work/out" && ! grep -q "Ctrl-D or" "$work/out"'
    { sleep 0.5; printf 'one\n'; sleep 1; printf '\003'; sleep 0.5; printf '/stats\n/quit\n'; sleep 0.2; } |
        pty -n 100000000 --ctx 100000000 >"$work/out" 2>"$work/err"
    check "Ctrl-C stops the answer, the chat goes on" eval \
        'grep -q "stopped" "$work/out" && grep -q "turns: 1" "$work/out"'
fi

# ---- the demo, where its model cannot be had
LINNET=$linnet LINNET_CACHE=$work/cache PIP_NO_INDEX=1 PIP_FIND_LINKS="" scripts/demo.sh >"$work/out" 2>"$work/err"
code=$?
check "a toy takes its place and says so" eval \
    'code_is 0 && err_has "could not be fetched" && err_has "a toy answers instead" && [ "$(wc -w <"$work/out")" -gt 30 ]'

echo "$((count - bad)) passed, $bad failed"
[ "$bad" -eq 0 ]
