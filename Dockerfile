# Stage 1: a virtual environment with everything, compiled here.
FROM python:3.11-slim-bookworm AS builder

# A package index to take torch from, for a build other than the default one (a CPU-only one is much smaller).
ARG TORCH_INDEX=""

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
# As settings, the pins hold for what pip builds kenlm with, too.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt

# The slow steps, torch and kenlm, come before the sources: a change of the code does not repeat them.
COPY constraints.txt ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)" \
    && /opt/venv/bin/pip wheel --no-deps --wheel-dir /wheels "$(grep '^kenlm==' constraints.txt)" \
    && /opt/venv/bin/pip install /wheels/kenlm-*.whl

COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY decoding decoding
COPY ngram_models ngram_models
COPY client client
COPY benchmarks benchmarks
COPY evaluation evaluation
RUN /opt/venv/bin/pip wheel --no-deps --wheel-dir /wheels . \
    && /opt/venv/bin/pip install "$(echo /wheels/superdraft-*.whl)[server]"


# Stage 2: the image that runs; no compilers, not root.
FROM python:3.11-slim-bookworm

RUN groupadd --gid 1000 superdraft \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin superdraft \
    && install --directory --owner=superdraft --group=superdraft /var/lib/superdraft

COPY --from=builder /opt/venv /opt/venv

# Models and whatever else is fetched at run time go to the volume and nowhere else.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/var/lib/superdraft/huggingface \
    SUPERDRAFT_HOME=/var/lib/superdraft

USER 1000:1000
VOLUME ["/var/lib/superdraft"]
EXPOSE 8000

# The first start fetches and converts the default model.
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]

CMD ["superdraft", "serve", "--host", "0.0.0.0"]
