import socket

# An address, not a name: nothing has to be resolved, and still nothing gets out.
socket.create_connection(("1.1.1.1", 443), timeout=10)
