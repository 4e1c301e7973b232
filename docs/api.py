"""Write the pages of the Python API: every public name. MPI is not started, and no GPU is needed.

python docs/api.py [FOLDER]        build/api if none is named
"""

import sys
from pathlib import Path

import mpi4py
import pdoc

import isthmus

mpi4py.rc.initialize = False
try:
    for name in isthmus.torch.__all__:
        getattr(isthmus.torch, name)  # pages tell what is loaded
except isthmus.IsthmusError:
    isthmus.torch.__all__ = []  # without PyTorch they leave its adapter out
pdoc.render.configure(
    docformat="markdown",
    show_source=False,
    footer_text="isthmus",
    template_directory=Path(__file__).with_name("api_style"),
)
pdoc.pdoc("isthmus", output_directory=Path(sys.argv[1] if len(sys.argv) > 1 else "build/api"))
