# falcon3-audio serve on a CPU:
#     docker build -t falcon3-audio .
#     docker run -p 8000:8000 -e KEY=... -v "$PWD/my-checkpoint:/model:ro" falcon3-audio
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libjemalloc2 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY constraints.txt .
RUN pip install --no-cache-dir --constraint constraints.txt torch --extra-index-url https://download.pytorch.org/whl/cpu
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt ".[serve]"
RUN useradd --create-home app
USER app
ENV LD_PRELOAD=libjemalloc.so.2
EXPOSE 8000
# The API key is in the variable KEY; without it the server does not start.
ENTRYPOINT ["falcon3-audio", "serve", "--host", "0.0.0.0", "--api-key-env", "KEY"]
CMD ["/model"]
