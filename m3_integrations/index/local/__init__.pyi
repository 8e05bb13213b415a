from .index import LocalIndex as LocalIndex
