"""Base models in Flax Linen: GPT-Neo and the rotary decoders (Llama, Qwen2/2.5, Qwen3).

model, params, tokenizer = models.load('EleutherAI/gpt-neo-125m')
logits = model.apply({'params': params}, tokens, positions=None, segment_ids=None)  # [B, T] int32
-> [B, T, V] float32
"""

from jaxpeft.models.config import ModelConfig as ModelConfig
from jaxpeft.models.config import from_hf as from_hf
from jaxpeft.models.decoder import Decoder as Decoder
from jaxpeft.models.gpt_neo import GPTNeo as GPTNeo
from jaxpeft.models.known import config_of as config_of
from jaxpeft.models.load import build as build
from jaxpeft.models.load import load as load
from jaxpeft.models.load import param_shapes as param_shapes
from jaxpeft.models.loop import apart as apart
from jaxpeft.models.loop import joined as joined
from jaxpeft.models.names import stack as stack
from jaxpeft.models.names import unstack as unstack
from jaxpeft.models.save import save_pretrained as save_pretrained
from jaxpeft.models.sharding import base_shardings as base_shardings
