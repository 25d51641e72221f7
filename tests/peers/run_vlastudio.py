"""VLAStudio's own HTTP client, unmodified, in its environment; prints a JSON line for each thing it gets.

    run_vlastudio.py URL OBSERVATIONS.npz ENCODING CLIENT_ID [EPISODE ...]

OBSERVATIONS.npz holds ``state`` (n, state_dim) and ``image`` (n, cameras, 3, height, width), or no image.
ENCODING is auto, jpeg or raw. With episodes, one for each observation, "-" for none.
"""

import base64
import json
import sys
import types

import numpy as np

# VLAStudio imports torch for isinstance() only, on the way of this client; torch takes 200 MB.
sys.modules["torch"] = types.ModuleType("torch")
sys.modules["torch"].Tensor = type("Tensor", (), {})

import requests  # noqa: E402
from vlastudio.benchmark.base import MetaObs  # noqa: E402
from vlastudio.deploy.comm import create_client  # noqa: E402
from vlastudio.deploy.comm.fastapi.client import FastAPIPolicyClient  # noqa: E402
from vlastudio.deploy.comm.fastapi.codec import encode_images_jpeg  # noqa: E402


def show(**fields):
    print(json.dumps(fields), flush=True)


def main(url, path, encoding, client_id, *episodes):
    observations = np.load(path)
    states = observations["state"]
    images = observations["image"] if "image" in observations else [None] * len(states)
    made = create_client(url)
    assert isinstance(made, FastAPIPolicyClient)
    size = None if images[0] is None else (images[0].shape[-1], images[0].shape[-2])
    client = FastAPIPolicyClient(
        url, client_id=client_id, image_encoding=encoding, image_size=size, timeout_s=20
    )
    show(healthy=made.health_check(), codecs=client._server_image_codecs())
    for step, (state, image) in enumerate(zip(states, images)):
        # As its inference worker numbers them.
        observation = MetaObs(state=state, image=image, raw_lang="lift the cube", timestep=np.array([[step]]))
        named = {}
        if step < len(episodes) and episodes[step] != "-":
            named["episode_id"] = int(episodes[step])
        try:
            steps = client.send_meta_obs(observation, **named)
        except requests.exceptions.HTTPError as error:
            show(status=error.response.status_code, error=error.response.json())
            continue
        assert all(rows.dtype == object and rows.shape == (1,) for rows in steps)
        actions = np.stack([rows[0]["action"] for rows in steps])
        show(
            shape=actions.shape,
            dtype=str(actions.dtype),
            actions=base64.b64encode(actions.tobytes()).decode(),
            keys=sorted(steps[0][0]),
            ctrl=[steps[0][0]["ctrl_space"], steps[0][0]["ctrl_type"]],
            frames=None if image is None else encode_images_jpeg(image)["frames"],
        )
    show(encoding=client._resolved_image_encoding)


main(*sys.argv[1:])
