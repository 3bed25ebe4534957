"""Runs the whole mesh on one machine, from the servers' Python wheels, without containers.

`supervisor` is the only code that starts and watches parts of a mesh; the demo, the bench and the tests use it.
`parts` lists the parts. `location` has the folder, the secrets and the addresses of one mesh, `ports` its ports.
`environment` has what the parts see of the shell. `leftovers` ends the parts of a supervisor that was killed.
`probes` ask whether a part is ready. `files`, `postgres` and `wheels` prepare the servers. `control` runs the
supervisor as a process of its own.

For people: `python -m deploy.local up`. For programs:

    async with Mesh(Site.at(tmp_path, base_port=free_base()), INFRASTRUCTURE) as mesh:
        mesh.site.database_url("orders")
"""

from deploy.local.location import Site
from deploy.local.parts import EVERYTHING, INFRASTRUCTURE, Part
from deploy.local.ports import Ports, PortTaken, free_base
from deploy.local.supervisor import Failed, Mesh

__all__ = ["EVERYTHING", "INFRASTRUCTURE", "Failed", "Mesh", "Part", "PortTaken", "Ports", "Site", "free_base"]
