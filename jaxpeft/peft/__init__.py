"""Exchange with HF PEFT, which is torch: adapter folders both ways, and merged models.

Nothing here imports torch or peft; safetensors loads where a file is read or written.
"""

from jaxpeft.peft.export import export_peft as export_peft
from jaxpeft.peft.imports import import_peft as import_peft
from jaxpeft.peft.merged import export_merged as export_merged
