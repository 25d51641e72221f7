"""A policy server as openpi's is: metadata first, actions for an observation, a text where it fails.

Run as a program: ``openpi_server.py PORT [DIES_AT]``. It answers ``observation/state[:3]`` plus the step of
the chunk, with a gripper that is closed, and kills itself at that request.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from robowire.frontends.openpi.codec import decode, encode

left = [int(sys.argv[2]) if len(sys.argv) > 2 else -1]


def act(content: dict[str, np.ndarray]) -> np.ndarray:
    if content["prompt"] == "slow":
        raise TimeoutError
    if content["prompt"] == "nan":
        return np.full((4, 7), np.nan)
    if content["prompt"] == "short":
        return np.zeros((3, 7))
    image, wrist = content["observation/image"], content["observation/wrist_image"]
    chunk = np.zeros((4, 7))
    chunk[:, :3] = content["observation/state"][:3] + np.arange(4)[:, np.newaxis]
    chunk[:, 3:6] = image[0, 0].astype(float) - wrist[0, 1]
    chunk[:, 6] = 1.0
    return chunk


async def handle(connection: ServerConnection) -> None:
    await connection.send(encode({}))
    try:
        while True:
            content = decode(await connection.recv())
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            try:
                actions = act(content)
            except TimeoutError:
                continue
            except Exception as exc:
                await connection.send(f"Traceback (most recent call last):\n{exc!r}")
                await connection.close(1011, "Internal server error.")
                return
            await connection.send(encode({"actions": actions, "server_timing": {"infer_ms": 1.0}}))
    except ConnectionClosed:
        return


async def main() -> None:
    async with serve(handle, "127.0.0.1", int(sys.argv[1]), compression=None, max_size=None) as server:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
