"""Triton's interpreter, without work that it does again and again."""


def patch_once_a_launch():
    """Triton's interpreter replaces the functions of triton.language at a launch, and again whenever a kernel calls a
    function: a third of the time, for the same functions. Here once a launch and module that calls."""
    from triton.runtime import interpreter

    launch, patch, done = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launched(*args, **kwargs):
        done.clear()
        return launch(*args, **kwargs)

    def patched(fn):
        if id(fn.__globals__) not in done:
            done.add(id(fn.__globals__))
            return patch(fn)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launched, patched
