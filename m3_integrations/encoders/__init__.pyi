from .base import Encoder as Encoder, EncoderConfig as EncoderConfig
from .composed import ComposedEncoder as ComposedEncoder
from .explain import Explanation as Explanation
from .m3 import M3Encoder as M3Encoder
from .pool import EncoderPool as EncoderPool
from .remote import RemoteEncoder as RemoteEncoder
