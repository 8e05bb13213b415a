from .hash_encoder import HashEncoder as HashEncoder
from .index_contract import IndexContract as IndexContract
