"""openpi's client, and a server as openpi writes it. Runs in the environment of openpi-client.

python openpi_peer.py serve [--fixed_ms F --row_ms R]     prints its port
python openpi_peer.py ask PORT SIZE THREADS               prints "ready"; "go SECONDS" begins a round
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import harness
import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.asyncio.server import serve as websocket_serve
from websockets.exceptions import ConnectionClosed


def ask(port: int, images: dict[str, np.ndarray]) -> Any:
    """Return the function of one round trip."""
    policy = WebsocketClientPolicy("127.0.0.1", port)
    observation = {
        **{f"observation/{name}": image for name, image in images.items()},
        "observation/state": np.zeros(harness.STATE_DIM, np.float64),
        "prompt": "lift the cube",
    }

    def round_trip() -> np.ndarray:
        return policy.infer(observation)["actions"]

    return round_trip


def serve(fixed_s: float, row_s: float, actions: np.ndarray = harness.ACTIONS) -> None:
    """Serve as openpi does: the policy runs in the event loop, one observation at a time."""

    async def handle(websocket: Any) -> None:
        packer = msgpack_numpy.Packer()
        await websocket.send(packer.pack({}))
        with contextlib.suppress(ConnectionClosed):  # how its clients end
            async for message in websocket:
                started = time.monotonic()
                msgpack_numpy.unpackb(message)
                if fixed_s or row_s:
                    time.sleep(fixed_s + row_s)
                timing = {"infer_ms": time.monotonic() - started}
                await websocket.send(packer.pack({"actions": actions, "server_timing": timing}))

    async def run() -> None:
        async with websocket_serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            harness.announce(server.sockets[0].getsockname()[1])
            await asyncio.get_running_loop().run_in_executor(None, harness.wait_for_end)

    asyncio.run(run())


if __name__ == "__main__":
    harness.main(serve, ask)
