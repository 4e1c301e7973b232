"""Tell what quarters of a city learn alone and together: what case 4 runs in ranks."""

import json
import sys
from pathlib import Path

from mpi4py import MPI

sys.path.append(str(Path(__file__).resolve().parent.parent))

from city import Settings
from path_planning import serve

import isthmus


def main(path):
    settings = Settings.from_toml(path)
    told = serve(MPI.COMM_WORLD, settings, isthmus.Cluster.from_toml(path.parent / settings.cluster))
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
