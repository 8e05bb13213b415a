from .api import nudge as nudge
from .feedback import Feedback as Feedback
from .judged import Judged as Judged
from .nudger import Nudger as Nudger
from .optimize.dense import Nudged as Nudged
from .optimize.hybrid import NudgedModes as NudgedModes
from .progress import Progress as Progress
from .reencoding import (
    Reencoding as Reencoding,
    reencode as reencode,
    reencode_collection as reencode_collection,
    undo_reencode as undo_reencode,
)
from .report.report import NudgeReport as NudgeReport
from .tuning import (
    PlanTuning as PlanTuning,
    choose_plan as choose_plan,
    revert_tuning as revert_tuning,
    tune as tune,
)
