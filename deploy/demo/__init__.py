"""`make demo`: a flash sale on the local mesh, through the gateway, and a check that units and money add up.

`stage` prepares the sale, `rush` sends the customers, `tally` counts, `screen` shows progress, `report` the result.
"""
