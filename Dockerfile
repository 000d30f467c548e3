# The recorder as an image:
#   docker build -t zaplock .
#   docker run --rm --privileged --pid=host -v "$PWD:/out" zaplock record -p PID -d 30s -o /out/x.zaplock
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY docs/glossary.md docs/
COPY src src
RUN python -m venv /opt/zaplock && /opt/zaplock/bin/pip install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /opt/zaplock /opt/zaplock
ENTRYPOINT ["/opt/zaplock/bin/zaplock"]
CMD ["--help"]
