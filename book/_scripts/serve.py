"""Serve the built pages on this machine and rebuild them when a source changes."""

import functools
import http.server
import subprocess
import sys
import threading
import time

import yaml

import build

PORT = 8000


def watch():
    seen = build.wanted_state()
    while True:
        time.sleep(2)
        try:
            now = build.wanted_state()
        except (OSError, yaml.YAMLError):  # a file is just being written
            continue
        if now != seen:
            seen = now
            subprocess.run([sys.executable, build.__file__])


def main():
    folder = str(build.PAGE.parent)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler)
    except OSError as error:
        sys.exit(f"serve.py: port {PORT} cannot be used: {error}")
    threading.Thread(target=watch, daemon=True).start()
    with server:
        print(f"http://127.0.0.1:{PORT} shows the book and follows your changes; Ctrl-C stops.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
