# x2l serve. CPU by default; `--build-arg TORCH=cu130` takes torch for CUDA 13.0 (any backend that `uv pip` knows).
FROM python:3.11-slim
ARG TORCH=cpu
RUN pip install --no-cache-dir uv
COPY . /src
RUN uv pip install --system --no-cache --torch-backend "${TORCH}" --constraint /src/constraints.txt "/src[serve]" \
    && rm -r /src && useradd --uid 1000 --create-home x2l && install -d -o x2l -m 700 /library
USER x2l
VOLUME /library
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
# Others reach a container's port, so there must be keys: make the first one as docs/serving.md says.
ENTRYPOINT ["x2l", "serve", "--host", "0.0.0.0", "--library", "/library", "--api-key-file", "/library/keys", "--log-format", "json"]
