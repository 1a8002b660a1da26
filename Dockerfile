# docker build -t onnx-osplus . && docker run --rm -v "$PWD:/work" onnx-osplus in.onnx out.onnx --calib data.npz
FROM rust:1.95-slim AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release && strip target/release/onnx-osplus

FROM debian:trixie-slim
COPY --from=build /src/target/release/onnx-osplus /usr/local/bin/onnx-osplus
WORKDIR /work
ENTRYPOINT ["onnx-osplus"]
