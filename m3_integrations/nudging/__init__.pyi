from .api import nudge as nudge
from .judged import Judged as Judged
from .nudger import Nudger as Nudger
from .optimize.dense import Nudged as Nudged
from .optimize.hybrid import NudgedModes as NudgedModes
from .report.report import NudgeReport as NudgeReport
