"""What holds of every backend. A backend's tests inherit from `EngineContract` and say how an engine is made."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx
import pytest

from tests import networks
from wetread.engines import Context, Engine
from wetread.errors import EngineError, NotFiniteError
from wetread.graph import Graph

WINDOW = (16, 8, 12)


def images(n: int, channels: int = 2, window: tuple[int, ...] = WINDOW, seed: int = 0) -> np.ndarray:
    """Random windows, never zeros."""
    return np.random.default_rng(seed).standard_normal((n, channels, *window)).astype(np.float32)


def poisoned(engine: Engine, n: int, window: tuple[int, int, int] = WINDOW) -> tuple[np.ndarray, ...]:
    """Output arrays full of NaN, so that a voxel that is not written shows."""
    return (np.full((n, *engine.output_shape(window)), np.nan, engine.outputs[0].dtype),)


def run(engine: Engine, context: Context, x: np.ndarray) -> np.ndarray:
    out = poisoned(engine, len(x), x.shape[2:])
    context.submit((x,), out).wait()
    return out[0]


class EngineContract:
    """Values, shapes, threads, lifecycle.

    Attributes:
        tolerance: largest difference to float64, relative to the largest output. Float32 through the eleven
            layers of the test network leaves a few 1e-6.
        computes: False where no numbers come out (the null engine).
    """

    tolerance = 1e-5
    computes = True

    def make(self, model: onnx.ModelProto) -> Engine:
        raise NotImplementedError

    @pytest.fixture
    def graph(self) -> Graph:
        return Graph(networks.unet((2, 3), (4, 8)))

    @pytest.fixture
    def engine(self, graph: Graph) -> Any:
        engine = self.make(graph.model)
        yield engine
        engine.close()

    def test_says_what_it_is(self, engine: Engine) -> None:
        assert all((engine.info.backend, engine.info.precision, engine.info.device, engine.info.version))
        assert [(i.name, i.shape, i.dtype) for i in engine.inputs] == [
            ("image", (None, 2, None, None, None), "float32")
        ]
        assert [(o.name, o.shape[:2], o.dtype) for o in engine.outputs] == [("logits", (None, 3), "float32")]
        assert engine.bytes > 0

    def test_values_agree_with_float64(self, engine: Engine, graph: Graph) -> None:
        self._computes()
        x = images(2)
        with engine.context(WINDOW, 2) as context:
            found = run(engine, context, x)
        expected = graph.evaluate({"image": x})["logits"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=self.tolerance * np.abs(expected).max())

    @pytest.mark.parametrize("n", [1, 2, 3, 5])
    def test_a_window_gives_the_same_in_any_batch(self, engine: Engine, n: int) -> None:
        x = images(5)
        with engine.context(WINDOW, 5) as many, engine.context(WINDOW) as one:
            together = run(engine, many, x[:n])
            alone = np.concatenate([run(engine, one, x[i : i + 1]) for i in range(n)])
        assert np.isfinite(together).all()
        np.testing.assert_array_equal(together, alone)

    def test_one_context_can_be_used_again_with_fewer_and_more_windows(self, engine: Engine) -> None:
        x = images(4)
        with engine.context(WINDOW, 4) as context:
            first = run(engine, context, x)
            for n in (1, 4, 2):
                np.testing.assert_array_equal(run(engine, context, x[:n]), first[:n])

    def test_threads_at_once_give_the_same_as_alone(self, engine: Engine) -> None:
        windows = [images(3, seed=k) for k in range(4)]
        with engine.context(WINDOW, 3) as context:
            alone = [run(engine, context, x) for x in windows]
        found: dict[int, np.ndarray] = {}
        errors: list[BaseException] = []
        start = threading.Barrier(len(windows))

        def work(k: int) -> None:
            try:
                with engine.context(WINDOW, 3) as context:
                    start.wait(30)
                    for _ in range(5):
                        found[k] = run(engine, context, windows[k])
                        np.testing.assert_array_equal(found[k], alone[k])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(len(windows))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors, errors[0]
        assert len(found) == len(windows)

    def test_two_contexts_of_one_thread_run_at_once(self, engine: Engine) -> None:
        x, y = images(2, seed=1), images(2, seed=2)
        with engine.context(WINDOW, 2) as a, engine.context(WINDOW, 2) as b:
            out_a, out_b = poisoned(engine, 2), poisoned(engine, 2)
            tickets = a.submit((x,), out_a), b.submit((y,), out_b)
            for ticket in reversed(tickets):
                ticket.wait()
            np.testing.assert_array_equal(out_a[0], run(engine, b, x))
            np.testing.assert_array_equal(out_b[0], run(engine, a, y))

    def test_free_axes_take_several_shapes(self, engine: Engine, graph: Graph) -> None:
        for window in ((8, 8, 8), (16, 8, 12), (4, 20, 6)):
            assert engine.output_shape(window) == (3, *window)
            x = images(1, window=window)
            with engine.context(window) as context:
                found = run(engine, context, x)
            assert np.isfinite(found).all()
            if self.computes:
                expected = graph.evaluate({"image": x})["logits"]
                np.testing.assert_allclose(
                    found, expected, rtol=0, atol=self.tolerance * np.abs(expected).max()
                )

    @pytest.mark.parametrize("maps", [False, True])
    def test_scores_of_a_classifier(self, maps: bool) -> None:
        model = networks.classifier((2, 3), maps=maps)
        engine = self.make(model)
        assert engine.output_shape(WINDOW) == ((3, 1, 1, 1) if maps else (3,))
        x = images(3)
        with engine.context(WINDOW, 3) as context:
            found = run(engine, context, x)
        assert np.isfinite(found).all()
        if self.computes:
            expected = Graph(model).evaluate({"image": x})["scores"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=self.tolerance * np.abs(expected).max())
        engine.close()

    def test_other_outputs_are_named(self) -> None:
        engine = self.make(networks.planes())
        with pytest.raises(EngineError, match=r"\(batch, channels, 3 spatial axes\)"):
            engine.output_shape(WINDOW)
        engine.close()

    def test_fixed_axes_refuse_other_shapes(self) -> None:
        engine = self.make(networks.unet((1, 2), (4, 8), window=(8, 8, 16), batch=1))
        assert engine.inputs[0].shape == (1, 1, 8, 8, 16)
        with engine.context((8, 8, 16), 3) as context:
            assert np.isfinite(run(engine, context, images(3, 1, (8, 8, 16)))).all()
        with pytest.raises(EngineError, match=r"\(8, 8, 16\)"):
            engine.context((8, 8, 8))
        engine.close()

    def test_windows_that_the_network_cannot_take(self, engine: Engine) -> None:
        self._computes()
        with pytest.raises(EngineError, match=r"\(15, 8, 12\)"):
            engine.context((15, 8, 12))

    @pytest.mark.parametrize("window", [(0, 8, 8), (8, 8), (-8, 8, 8), (8, 8, 8, 8)])
    def test_windows_that_are_none(self, engine: Engine, window: Any) -> None:
        with pytest.raises(EngineError, match="not three positive sizes"):
            engine.context(window)

    def test_batch_of_none(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="max_batch"):
            engine.context(WINDOW, 0)

    def test_states_its_needs(self, engine: Engine) -> None:
        with engine.context(WINDOW, 3) as context:
            assert context.max_batch == 3
            assert context.bytes > 0

    @pytest.mark.parametrize(
        "fault", ["shape", "channels", "type", "batch", "layout", "number", "not an array"]
    )
    def test_wrong_inputs_are_refused(self, engine: Engine, fault: str) -> None:
        good = images(2)
        bad: dict[str, tuple[Any, ...]] = {
            "shape": (images(2, window=(8, 8, 12)),),
            "channels": (images(2, 1),),
            "type": (good.astype(np.int32),),
            "batch": (images(3),),
            "layout": (np.asfortranarray(good),),
            "number": (good, good),
            "not an array": ([1.0],),
        }
        with engine.context(WINDOW, 2) as context:
            with pytest.raises(EngineError):
                context.submit(bad[fault], poisoned(engine, len(bad[fault][0])))
            assert np.isfinite(run(engine, context, good)).all()

    @pytest.mark.parametrize("fault", ["shape", "type", "read-only", "batch"])
    def test_wrong_outputs_are_refused(self, engine: Engine, fault: str) -> None:
        (good,) = poisoned(engine, 2)
        locked = good.copy()
        locked.flags.writeable = False
        bad = {
            "shape": good[:, :2].copy(),
            "type": good.astype(np.float16),
            "read-only": locked,
            "batch": good[:1],
        }
        with engine.context(WINDOW, 2) as context, pytest.raises(EngineError):
            context.submit((images(2),), (bad[fault],))

    def test_read_only_inputs_are_taken(self, engine: Engine) -> None:
        x = images(1)
        with engine.context(WINDOW) as context:
            expected = run(engine, context, x)
            x.flags.writeable = False
            np.testing.assert_array_equal(run(engine, context, x), expected)

    def test_inputs_are_left_alone(self, engine: Engine) -> None:
        x = images(2)
        before = x.copy()
        with engine.context(WINDOW, 2) as context:
            run(engine, context, x)
        np.testing.assert_array_equal(x, before)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_input_that_is_not_finite(self, engine: Engine, value: float) -> None:
        self._computes()
        x = images(2)
        x[1, 0, 3, 3, 3] = value
        with engine.context(WINDOW, 2) as context:
            with pytest.raises(NotFiniteError, match="NaN or infinite"):
                context.submit((x,), poisoned(engine, 2)).wait()
            assert np.isfinite(run(engine, context, images(2))).all()

    @pytest.mark.parametrize("value", [-1.0, 0.0])
    def test_output_that_is_not_finite(self, value: float) -> None:
        """log(−1) is NaN, log(0) is minus infinity."""
        self._computes()
        engine = self.make(networks.poison())
        x = np.abs(images(2, 1)) + 1
        with engine.context(WINDOW, 2) as context:
            assert np.isfinite(run(engine, context, x)).all()
            x[1, 0, 3, 3, 3] = value
            ticket = context.submit((x,), poisoned(engine, 2))
            for _ in range(2):
                with pytest.raises(NotFiniteError, match="1 of"):
                    ticket.wait()
            x[1, 0, 3, 3, 3] = 1.0
            assert np.isfinite(run(engine, context, x)).all()
        engine.close()

    def test_large_finite_outputs_pass(self) -> None:
        """Their sum overflows float32; each of them does not."""
        self._computes()
        engine = self.make(networks.threshold(cut=0.0, gain=1e36))
        with engine.context(WINDOW) as context:
            found = run(engine, context, np.abs(images(1, 1)) + 1)
        assert np.isfinite(found).all()
        engine.close()

    def test_ticket(self, engine: Engine) -> None:
        with engine.context(WINDOW, 2) as context:
            ticket = context.submit((images(2),), poisoned(engine, 2))
            assert ticket.done() in (True, False)
            ticket.wait()
            assert ticket.done()
            ticket.wait()

    def test_an_old_ticket_still_answers_after_the_next_batch(self, engine: Engine) -> None:
        with engine.context(WINDOW) as context:
            first = context.submit((images(1),), poisoned(engine, 1))
            first.wait()
            second = context.submit((images(1),), poisoned(engine, 1))
            first.wait()
            assert first.done()
            second.wait()

    def test_closing_twice(self, engine: Engine) -> None:
        context = engine.context(WINDOW)
        context.submit((images(1),), poisoned(engine, 1))
        context.close()
        context.close()
        with pytest.raises(EngineError, match="closed"):
            context.submit((images(1),), poisoned(engine, 1))

    def test_closed_engine(self, graph: Graph) -> None:
        engine = self.make(graph.model)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.context(WINDOW)

    def _computes(self) -> None:
        if not self.computes:
            pytest.skip("computes nothing")
