"""A small client of the REST surface, for what looks at Stampede from outside: the demo, the bench and the tests.

Services do not import it: they call each other over gRPC. `rest` sends requests and retries those that may be repeated,
`answers` reads what comes back, `shop` has the few requests that every outside program begins with.
"""

from deploy.client.answers import Answer, Json, RestError
from deploy.client.rest import Patience, Rest, User, new_id

__all__ = ["Answer", "Json", "Patience", "Rest", "RestError", "User", "new_id"]
