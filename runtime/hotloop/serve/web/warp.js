// warp_blend on the GPU of whoever watches: a keyframe and its reveal texture once, then flows and masks for each frame.
//
// The arithmetic is that of kernels/hotloop_kernels/warp_blend.py, whose docstring defines it; a byte is within 1 of the
// exact value. Little-endian:
//   scene   asked for once, by its number: u32 sources, then of each: u16 width, u16 height, u32 bytes; then the
//           sources, premultiplied RGBA as LZ4 blocks, one after another
//   fields  of each frame: u16 layers, u16 channels, u16 4 or 2 (bytes of a number: float32 or float16), u16 0, u32
//           bytes unpacked, u32 the scene's number; then of each layer: f32 x0, y0, x1, y1 (its box in pictures), u16
//           grid's width, u16 grid's height; then the grids [channels, height, width] one after another, as one LZ4
//           block

import { decodeBlock } from "./lz4.js";
import { Texture, contextOf, program } from "./gl.js";

const MOST_SOURCES = 4;
const MOST_LAYERS = 16;
const LARGEST = 4096;
const HEADER = 16; // bytes before the table of layers

const SHADER = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
precision highp sampler2DArray;

uniform sampler2DArray field;
uniform sampler2D source0, source1, source2, source3;
uniform int sources;
uniform bool coloured;
uniform ivec2 size;           // of the frame
uniform ivec2 first;          // pixel of the box
uniform vec2 scale, offset;   // pixel first + i is at i scale + offset, in nodes
out vec4 frame;

ivec2 pixel, low, high;
vec2 beyond;

float flow(float v) { return v > -16.0 ? min(v, 16.0) : -16.0; }
float share(float v) { return v >= 1.0 / 2048.0 ? min(v, 1.0) : 0.0; }
float node(int x, int y, int c) { return texelFetch(field, ivec3(x, y, c), 0).r; }

float flowAt(int c) {
  return mix(mix(flow(node(low.x, low.y, c)), flow(node(high.x, low.y, c)), beyond.x),
             mix(flow(node(low.x, high.y, c)), flow(node(high.x, high.y, c)), beyond.x), beyond.y);
}

float shareAt(int c) {
  return mix(mix(share(node(low.x, low.y, c)), share(node(high.x, low.y, c)), beyond.x),
             mix(share(node(low.x, high.y, c)), share(node(high.x, high.y, c)), beyond.x), beyond.y);
}

vec4 taken(sampler2D source, int c) {
  ivec2 n = textureSize(source, 0);
  vec2 place = vec2((2 * pixel + 1) * n - size) / vec2(2 * size) + vec2(n) * vec2(flowAt(c), flowAt(c + 1));
  ivec2 at = ivec2(floor(place));
  vec2 part = place - vec2(at);
  vec4 total = vec4(0.0);
  for (int tap = 0; tap < 4; ++tap) {
    ivec2 step = ivec2(tap & 1, tap >> 1), here = at + step;
    if (any(lessThan(here, ivec2(0))) || any(greaterThanEqual(here, n))) continue;
    vec2 weight = mix(1.0 - part, part, vec2(step));
    total += weight.x * weight.y * texelFetch(source, here, 0);
  }
  return total;
}

void over(sampler2D source, int s) {
  if (s < sources) frame = mix(frame, taken(source, 2 * s), shareAt(2 * sources + s - 1));
}

void main() {
  pixel = ivec2(int(gl_FragCoord.x), size.y - 1 - int(gl_FragCoord.y));
  ivec2 nodes = textureSize(field, 0).xy;
  vec2 at = clamp(vec2(pixel - first) * scale + offset, vec2(0.0), vec2(nodes - 1));
  low = ivec2(at);
  high = min(low + 1, nodes - 1);
  beyond = at - vec2(low);
  frame = taken(source0, 0);
  over(source1, 1);
  over(source2, 2);
  over(source3, 3);
  if (coloured) {
    int c = 3 * sources - 1;
    vec4 colour = vec4(shareAt(c), shareAt(c + 1), shareAt(c + 2), shareAt(c + 3));
    frame = colour + (1.0 - colour.a) * frame;
  }
}`;

/** The pixels whose centres lie in low <= u < high, and where they lie on the grid of such a box. */
function span(low, high, pixels, nodes) {
  const edge = (at) => Math.min(Math.max(Math.ceil(at * pixels - 0.5), 0), pixels);
  const [first, end] = [edge(low), edge(high)];
  return {
    first,
    end,
    scale: Math.min(nodes / (pixels * (high - low)), 1e9),
    offset: (((first + 0.5) / pixels - low) / (high - low)) * nodes - 0.5,
  };
}

const check = (fine, rule, got) => {
  if (!fine) throw new Error(`[warp] ${rule}, got ${got}`);
};

/** The payload of a scene -> [{width, height, rgba}]. */
export function parseScene(payload) {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const count = view.getUint32(0, true);
  check(count >= 1 && count <= MOST_SOURCES, `sources must be 1 to ${MOST_SOURCES}`, count);
  const found = [];
  let begin = 4 + 8 * count;
  for (let s = 0; s < count; ++s) {
    const [width, height] = [view.getUint16(4 + 8 * s, true), view.getUint16(6 + 8 * s, true)];
    check(width >= 1 && height >= 1 && Math.max(width, height) <= LARGEST, `sizes must be 1 to ${LARGEST}`, width);
    const end = begin + view.getUint32(8 + 8 * s, true);
    check(end <= payload.length, "a source must lie in its message", end);
    found.push({ width, height, rgba: decodeBlock(payload.subarray(begin, end), 4 * width * height) });
    begin = end;
  }
  return found;
}

/** The payload of a frame's fields -> {scene, layers: [{box, width, height, channels, values}]}, values Float32Array or
 *  half floats. */
export function parseFields(payload) {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const [layers, channels, bytes] = [0, 2, 4].map((at) => view.getUint16(at, true));
  check(layers >= 1 && layers <= MOST_LAYERS, `layers must be 1 to ${MOST_LAYERS}`, layers);
  check(bytes === 2 || bytes === 4, "numbers must have 2 or 4 bytes", bytes);
  const total = view.getUint32(8, true);
  const found = [];
  let count = 0;
  for (let l = 0; l < layers; ++l) {
    const at = HEADER + 20 * l;
    const box = [0, 4, 8, 12].map((more) => view.getFloat32(at + more, true));
    const [width, height] = [view.getUint16(at + 16, true), view.getUint16(at + 18, true)];
    check(width >= 1 && height >= 1 && Math.max(width, height) <= LARGEST, `grids must be 1 to ${LARGEST}`, width);
    found.push({ box, width, height, channels, begin: count });
    count += channels * width * height;
  }
  check(total === bytes * count, `fields must have ${bytes * count} bytes`, total);
  const unpacked = decodeBlock(payload.subarray(HEADER + 20 * layers), total);
  const values = bytes === 4 ? new Float32Array(unpacked.buffer) : new Uint16Array(unpacked.buffer);
  for (const layer of found) {
    layer.values = values.subarray(layer.begin, layer.begin + channels * layer.width * layer.height);
  }
  return { scene: view.getUint32(12, true), layers: found };
}

export class Warp {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = contextOf(canvas);
    const { gl } = this;
    Object.assign(this, program(gl, SHADER));
    this.fields = Array.from({ length: MOST_LAYERS }, () => new Texture(gl, gl.TEXTURE_2D_ARRAY));
    this.textures = Array.from({ length: MOST_SOURCES }, () => new Texture(gl, gl.TEXTURE_2D));
    this.sources = 0;
  }

  /** The keyframe, then what is blended over it: premultiplied RGBA bytes, each of its own size. */
  scene(sources) {
    const { gl } = this;
    sources.forEach(({ width, height, rgba }, s) => {
      this.textures[s].bind(1 + s, gl.RGBA8, [width, height]);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    });
    this.sources = sources.length;
  }

  /** One frame: the first layer over the whole picture, each next one in its box over those before it. */
  draw(layers, width, height) {
    const { gl, places } = this;
    const least = 3 * this.sources - 1;
    const { channels } = layers[0];
    check(this.sources > 0, "a scene must come before its fields", 0);
    check(channels === least || channels === least + 4, `channels must be ${least} or ${least + 4}`, channels);
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    gl.useProgram(this.made);
    gl.viewport(0, 0, width, height);
    gl.uniform1i(places.field, 0);
    for (let s = 0; s < MOST_SOURCES; ++s) {
      gl.uniform1i(places[`source${s}`], 1 + s);
      this.textures[Math.min(s, this.sources - 1)].use(1 + s);
    }
    gl.uniform1i(places.sources, this.sources);
    gl.uniform1i(places.coloured, channels > least ? 1 : 0);
    gl.uniform2i(places.size, width, height);
    gl.enable(gl.SCISSOR_TEST);
    layers.forEach((layer, l) => {
      const [x0, y0, x1, y1] = l === 0 ? [0, 0, 1, 1] : layer.box;
      const across = span(x0, x1, width, layer.width);
      const down = span(y0, y1, height, layer.height);
      if (!(across.end > across.first && down.end > down.first)) return;
      const whole = layer.values instanceof Float32Array;
      this.fields[l].bind(0, whole ? gl.R32F : gl.R16F, [layer.width, layer.height, channels]);
      gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, 0, layer.width, layer.height, channels, gl.RED,
        whole ? gl.FLOAT : gl.HALF_FLOAT, layer.values);
      gl.uniform2i(places.first, across.first, down.first);
      gl.uniform2f(places.scale, across.scale, down.scale);
      gl.uniform2f(places.offset, across.offset, down.offset);
      gl.scissor(across.first, height - down.end, across.end - across.first, down.end - down.first);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    });
    gl.disable(gl.SCISSOR_TEST);
  }
}
