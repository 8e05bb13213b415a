from .codecs import PRECISIONS as PRECISIONS, Precision as Precision
