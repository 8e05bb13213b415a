from .base import Hit as Hit, HybridHit as HybridHit, HybridRequest as HybridRequest, Index as Index
from .copying import CopyReport as CopyReport, copy_index as copy_index
from .filter_syntax import parse_where as parse_where
from .filters import Field as Field, Where as Where, all_of as all_of, any_of as any_of, none_of as none_of
from .local.index import LocalIndex as LocalIndex
from .local.recovery.check import check_index as check_index
from .local.recovery.repair import repair_index as repair_index
from .local.recovery.values import CheckReport as CheckReport, RepairReport as RepairReport
from .memory import MemoryIndex as MemoryIndex
from .opening import copy_location as copy_location, open_index as open_index
