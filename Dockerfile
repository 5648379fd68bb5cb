# e3jax on a CPU: docker build -t e3jax .
#   docker run --rm --network none -v "$PWD":/work -u "$(id -u):$(id -g)" e3jax rank photos/
FROM python:3.13-slim AS build
COPY pyproject.toml README.md LICENSE /source/
COPY e3jax /source/e3jax
RUN python -m venv /opt/e3jax \
    && /opt/e3jax/bin/pip install --no-cache-dir "/source[large,features,heic]"

FROM python:3.13-slim
COPY --from=build /opt/e3jax /opt/e3jax
ENV PATH=/opt/e3jax/bin:$PATH E3JAX_CACHE_DIR=/tmp/e3jax
WORKDIR /work
USER 1000
ENTRYPOINT ["e3jax"]
