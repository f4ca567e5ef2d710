"""WebRTC: a camera comes in by WHIP (RFC 9725), an avatar goes out by WHEP (a draft: experimental).

`routes` is HTTP, `offers` what a peer may say, `peers` who is there, `incoming` and `outgoing` the pictures. Needs the
extra `[webrtc]`; aiortc is imported with the first peer.
"""
