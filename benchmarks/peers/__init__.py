"""Other implementations, measured like hotloop: each in a process and a virtual environment of its own.

    from peers.client import Process
    from peers.table import PEERS
    from peers.work import Setup, Work

    with Process(PEERS["diffusers eager fp32"], Setup(model=folder)) as peer:
        print(peer.open().load, peer.draw(work).seconds)

`table.py` names the peers, `adapters/` holds one module per library, `worker.py` runs in the peer's environment and
`client.py` here; `messages.py` is what the two speak. What runs there imports numpy and the peer's packages only.
"""
