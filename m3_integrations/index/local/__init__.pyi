from .index import LocalIndex as LocalIndex
from .recovery.check import check_index as check_index
from .recovery.repair import repair_index as repair_index
from .recovery.values import (
    CheckReport as CheckReport,
    DamagedFile as DamagedFile,
    DamagedPassage as DamagedPassage,
    RepairReport as RepairReport,
)
