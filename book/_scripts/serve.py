"""Serve the built pages on this machine and rebuild them when a source changes."""

import functools
import http.server
import subprocess
import sys
import threading
import time

import build

PORT = 8000


def watch():
    seen = build.wanted_state()
    while True:
        time.sleep(2)
        now = build.wanted_state()
        if now != seen:
            seen = now
            subprocess.run([sys.executable, build.__file__])


def main():
    threading.Thread(target=watch, daemon=True).start()
    folder = str(build.PAGE.parent)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler) as server:
        print(f"http://127.0.0.1:{PORT} shows the book and follows your changes; Ctrl-C stops.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
