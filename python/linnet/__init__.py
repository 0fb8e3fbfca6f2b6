"""linnet: runs softmax, linearized and hybrid language models from one GGUF file.

    with linnet.Model("model.gguf") as model, model.session() as session:
        for text in session.generate("Once upon a time", max_tokens=100):
            print(text, end="", flush=True)
"""

from ._native import VERSION as __version__
from ._native import LinnetError, Status
from .model import Cache, CacheStats, Message, Mixer, Model, ModelInfo
from .sampling import Generated, Generation, SamplingOptions
from .session import Reuse, Session

__all__ = ["Cache", "CacheStats", "Generated", "Generation", "LinnetError", "Message", "Mixer", "Model", "ModelInfo",
           "Reuse", "SamplingOptions", "Session", "Status", "__version__"]
