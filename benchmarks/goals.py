"""What the CPU's rows have to reach: {case: [(provider, against, at least this many times as fast)]}."""

GOALS = {
    "step 1-1 MSE SGD, batch 5": [("ours", "stock", 2.5), ("ours, TrainStep", "stock", 30)],
    "step 2-5-2 MSE SGD, batch 5": [("ours", "stock", 4), ("ours, TrainStep", "stock", 40)],
    "step 10-5-5 CE Adam, batch 3": [("ours", "stock", 5), ("ours, TrainStep", "stock", 100)],
    "step 10-5-1 BCE Adam, batch 32": [("ours", "stock", 5), ("ours, TrainStep", "stock", 40)],
    "step 784-128-10 CE Adam, batch 64": [("ours", "stock", 3), ("ours, TrainStep", "stock", 4)],
    "step 784-1024-1024-10 CE Adam, batch 256": [("ours", "stock", 1.5), ("ours, TrainStep", "stock", 1.8)],
    "linear 1024x1024x1024 forward": [("ours", "stock", 2), ("ours", "oneDNN", 0.95), ("ours, AVX2", "stock", 1)],
    "linear 256x1024x1024 forward": [("ours", "oneDNN", 0.95), ("ours, AVX2", "stock", 1)],
    "linear 64x128x784 forward": [("ours", "stock", 1.8)],
    "linear 1x128x784 forward": [("ours", "stock", 1)],
    "softmax 4096x1024 forward": [("ours", "stock", 2)],
    "softmax 4096x1024 backward": [("ours", "stock", 1)],
    "softmax 512x32000 forward": [("ours", "stock", 2)],
    "softmax 64x10 forward+backward": [("ours", "stock", 1.5)],
    "cross_entropy 4096x1024 forward+backward": [("ours", "stock", 4.5)],
    "cross_entropy 512x32000 forward+backward": [("ours", "stock", 15)],
    "cross_entropy 64x10 forward+backward": [("ours", "stock", 1.8)],
    "mse_loss 4096x1024 forward+backward": [("ours", "stock", 5)],
    "mse_loss 64x10 forward+backward": [("ours", "stock", 1.3)],
    "Adam, 101,770 parameters in 4 tensors": [("ours", "stock, fused", 2.5)],
}
TWO_THREADS = {"step 784-128-10 CE Adam, batch 64": [("ours", "stock", 3), ("ours, TrainStep", "stock", 5.5)]}


def outcomes(rows):
    """(row, provider, against, reached, wanted) of every goal."""
    for row in rows:
        goals = TWO_THREADS.get(row["case"]) if row["threads"] == 2 else None
        for provider, against, wanted in goals or GOALS.get(row["case"], []):
            times = {name: timing["median"] for name, timing in row["timings"].items()}
            if provider in times and against in times:
                yield row, provider, against, times[against] / times[provider], wanted
