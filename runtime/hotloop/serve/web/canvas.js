// Frames onto a canvas: JPEG, JPEG with its alpha apart, RGBA, or a scene that is moved by fields (warp.js).
//
// A picture is drawn as soon as it is decoded; one that a newer one overtakes is not drawn at all. Colours of a
// transparent frame are premultiplied: over black.

import { FRAME } from "./wire.js";
import { decodeBlock } from "./lz4.js";
import { Texture, contextOf, program } from "./gl.js";
import { Warp, parseFields, parseScene } from "./warp.js";

const SHADER = `#version 300 es
precision highp float;
uniform sampler2D colour, alpha;
uniform bool masked;
uniform vec2 size;
out vec4 frame;

void main() {
  ivec2 at = ivec2(gl_FragCoord.x, size.y - gl_FragCoord.y);
  frame = texelFetch(colour, at, 0);
  if (masked) {
    float a = texelFetch(alpha, at, 0).r;
    frame = vec4(min(frame.rgb, a), a);  // a JPEG's ripples are no light where nothing is
  }
}`;

export class Painter {
  /** scene(number): gives, in time, the payload of a scene that fields name. */
  constructor(canvas, { scene = null } = {}) {
    this.canvas = canvas;
    this.asked = scene;
    this.newest = -1;
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => this.#build());
    this.#build();
  }

  #build() {
    const gl = contextOf(this.canvas);
    this.gl = gl;
    this.joined = program(gl, SHADER);
    this.colour = new Texture(gl, gl.TEXTURE_2D);
    this.alpha = new Texture(gl, gl.TEXTURE_2D);
    this.warp = this.scene = this.last = null;
  }

  /** Draws a frame -> whether it was: not when a newer one came while it was being decoded. Throws on broken ones. */
  async paint(frame) {
    this.newest = frame.id;
    if (frame.format === FRAME.FIELDS) return this.#moved(frame);
    if (frame.format === FRAME.RGBA) {
      const size = 4 * frame.width * frame.height;
      this.#join(decodeBlock(frame.colour, size), null, frame.width, frame.height);
      return true;
    }
    const picture = await createImageBitmap(new Blob([frame.colour], { type: "image/jpeg" }), {
      premultiplyAlpha: "none", colorSpaceConversion: "none",
    });
    if (frame.id !== this.newest) {
      picture.close();
      return false;
    }
    const { width, height } = picture;
    const alpha = frame.format === FRAME.JPEG_ALPHA ? decodeBlock(frame.alpha, width * height) : null;
    this.#join(picture, alpha, width, height);
    picture.close();
    return true;
  }

  /** The canvas's pixels, premultiplied RGBA, the last row first. */
  read() {
    const { gl, canvas } = this;
    this.last?.();
    const pixels = new Uint8Array(4 * canvas.width * canvas.height);
    gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    return pixels;
  }

  /** Draws the last frame again, for who reads the canvas in the same turn of the page. */
  again() {
    this.last?.();
  }

  async #moved(frame) {
    this.warp ??= new Warp(this.canvas);
    const { scene, layers } = parseFields(frame.colour);
    if (scene !== this.scene) {
      const payload = await this.asked(scene);
      if (scene !== this.scene) this.warp.scene(parseScene(payload));
      this.scene = scene;
      if (frame.id !== this.newest) return false;
    }
    this.last = () => this.warp.draw(layers, frame.width, frame.height);
    this.last();
    return true;
  }

  #join(picture, alpha, width, height) {
    const { gl } = this;
    this.colour.bind(0, gl.RGBA8, [width, height]);
    if (picture instanceof Uint8Array) {
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    } else {
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    }
    if (alpha) {
      this.alpha.bind(1, gl.R8, [width, height]);
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, gl.RED, gl.UNSIGNED_BYTE, alpha);
    }
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    this.last = () => {
      const { made, places } = this.joined;
      gl.useProgram(made);
      gl.viewport(0, 0, width, height);
      this.colour.use(0);
      (alpha ? this.alpha : this.colour).use(1);
      gl.uniform1i(places.colour, 0);
      gl.uniform1i(places.alpha, 1);
      gl.uniform1i(places.masked, alpha ? 1 : 0);
      gl.uniform2f(places.size, width, height);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    };
    this.last();
  }
}
