"""What is known of a text beside its tokens, for HyLoRADA v2: features and their encoder.

    features: numpy on the host (`code`, `series`, `graph`) or in the compiled step (`tokens`)
    encoder:  features -> P [B, T, dim], one for all layers, under '~shared/structure' in a plan

Features are a dict of arrays with the leading axes [B, T] of the tokens:

    positions [B, T] int     from the start of the sequence
    ids       [B, T, k] int  k columns of small numbers, each with a table of its own
    times     [B, T] float   hours
    values    [B, T, f] float, of about unit size
"""

from jaxpeft.structure.code import code_features as code_features
from jaxpeft.structure.encoder import structure_encoder as structure_encoder
from jaxpeft.structure.follow import NAME as NAME
from jaxpeft.structure.follow import follow_tokens as follow_tokens
from jaxpeft.structure.follow import if_planned as if_planned
from jaxpeft.structure.graph import graph_features as graph_features
from jaxpeft.structure.series import series_features as series_features
from jaxpeft.structure.tokens import token_features as token_features
from jaxpeft.structure.tokens import token_tables as token_tables
