# One image for every service of docker-compose.yml. The default torch is PyPI's CUDA build; for the small CPU build:
#   docker compose build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM python:3.11.14-slim-bookworm AS build
ARG TORCH_INDEX=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/automl
ENV PATH=/opt/automl/bin:$PATH
# torch first and alone: it is large, and seldom changes.
RUN pip install --no-compile --index-url "$TORCH_INDEX" "torch>=2.10,<2.14"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY automl automl
COPY dashboards dashboards
COPY search_spaces search_spaces
# The versions are those that pyproject.toml allows.
# hadolint ignore=DL3013
RUN pip install --no-compile ".[gguf,postgres,quant,samplers,text-metrics,web]" \
    && find /opt/automl -name __pycache__ -prune -exec rm -r {} +

FROM python:3.11.14-slim-bookworm
# pg_dump and pg_restore of the server's version, for `automl db backup`. Debian removes a version when the next one is
# there, so naming one would only break later builds.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-client-15 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 automl \
    && useradd --uid 10001 --gid automl --home-dir /srv/automl --no-create-home --shell /usr/sbin/nologin automl \
    && install --directory --owner=automl --group=automl --mode=0750 /srv/automl /cache /backups
COPY --from=build /opt/automl /opt/automl
# Bytecode would be a fifth of the image. Each container makes what it needs, once, in a place that no other one writes.
ENV PATH=/opt/automl/bin:$PATH \
    PYTHONPYCACHEPREFIX=/tmp/bytecode \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    AUTOML_CACHE=/cache/automl \
    HF_HOME=/cache/huggingface \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /srv/automl
CMD ["automl", "--help"]
