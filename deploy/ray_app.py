"""The server as an application of Ray Serve, for `serve run --app-dir deploy ray_app:app` and for KubeRay.

Its settings come from the environment (`SUPERDRAFT_...`) and the file in `SUPERDRAFT_CONFIG`; host and port are
those of Ray's proxies.
"""

from superdraft.server.ray_replicas.serve import application
from superdraft.server.settings import load_settings

app = application(load_settings())
