"""Ray Serve application of the server, for `serve run --app-dir deploy ray_app:app` and for KubeRay.

Settings come from the environment (`SUPERDRAFT_...`) and the file named in `SUPERDRAFT_CONFIG`. Ray's proxies determine
the host and the port.
"""

from superdraft.server.ray_replicas.serve import application
from superdraft.server.settings_sources import load_settings

app = application(load_settings())
