"""The whole mesh on one machine, from wheels: real servers, no containers.

`python -m deploy.local up` for people; `Mesh` for tests:

    async with Mesh(Site.at(tmp_path, base_port=free_base()), INFRASTRUCTURE) as mesh:
        mesh.site.database_url("orders")
"""

from deploy.local.parts import EVERYTHING, INFRASTRUCTURE, Part
from deploy.local.ports import Ports, PortTaken, free_base
from deploy.local.site import Site
from deploy.local.supervisor import Failed, Mesh

__all__ = ["EVERYTHING", "INFRASTRUCTURE", "Failed", "Mesh", "Part", "PortTaken", "Ports", "Site", "free_base"]
