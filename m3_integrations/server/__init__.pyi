from .http.app import create_app as create_app
from .mcp_server import create_mcp_app as create_mcp_app, create_mcp_server as create_mcp_server
from .process import serve as serve
from .settings import ServerSettings as ServerSettings
