"""What feeds the control bus: a parser for each protocol, and where it has its own socket a small listener.

A parser is pure: bytes or text and a time in, values by name out; nothing that is sent to it raises anything but
InputError. A listener hands them to a callback. Listeners are off until started and bound to loopback unless asked.
"""
