"""Where results go: a line each in a folder, with what made them, whole at every moment."""

from isthmus.files import check_folder, write_text
from isthmus.json_text import dumps
from isthmus.provenance import process_provenance


class Results:
    """The file `bench_NAME.jsonl` in `folder`, which one process starts and writes."""

    def __init__(self, folder, name):
        self.folder, self.path = folder, folder / f"bench_{name}.jsonl"
        self.provenance = None

    def start(self, **facts):
        """Return what makes the results, with `facts` that all share.

        Raises OutputError if the folder cannot be written, before anything is measured.
        """
        check_folder(self.folder, "name another folder with --output")
        self.provenance = process_provenance() | facts
        return self.provenance

    def keep(self, results):
        """Write all results so far, in the place of what was there before."""
        write_text(self.path, "".join(dumps(result | self.provenance) + "\n" for result in results))
