"""One module per library, imported by `worker.py` in that library's environment. Each has a class `Adapter`:

    Adapter(setup, **settings)  loads the model; `setup` is a `peers.work.Setup`, the settings are the table row's
    versions                    package -> version, of what decides the result
    ready(work)                 what does not belong to a call: noise as the library's own tensors, its sampler
    draw()                      the call that is timed; returns PIL images or uint8 [N, H, W, 3], really finished
    found()                     of the last call: a `peers.work.Found`

and, where a model must be converted before it can be loaded, a function `prepare(setup, **settings)`, run once in a
process of its own.
"""
