# AskMask for servers with NVIDIA GPUs. It was not built or run here, where there is neither Docker nor a GPU.
#   docker build -t askmask .
#   docker run --rm --gpus all --shm-size 8g --user $(id -u):$(id -g) \
#     -v $PWD/data/GlaS:/askmask/data/GlaS:ro -v $PWD/results:/askmask/results askmask active.py with glas heuristic=bald
#   docker run --rm --gpus all askmask -m experiments.device
# The host needs a driver and the NVIDIA Container Toolkit; torch's wheels bring CUDA. Data and results are mounted, never
# in the image: .dockerignore lets sources alone in. Mount /askmask/runs as well, or set runs_dir=results/runs.
FROM python:3.11-slim-bookworm

# trainer.compiled=True takes a C++ compiler
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /askmask
COPY requirements.txt requirements-pretrained.txt ./
# cu130 is an index that pytorch.org names by driver
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130 \
    && pip install --no-cache-dir -r requirements.txt -r requirements-pretrained.txt
COPY . .
RUN useradd --create-home askmask && mkdir -p results runs data \
    && chown askmask results runs data && chmod 1777 results runs
USER askmask
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python"]
CMD ["-m", "experiments.device"]
