// What the drawing modules share of WebGL 2.

const WHOLE = `#version 300 es
void main() {
  // One triangle over the whole picture.
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0);
}`;

/** The canvas's context: premultiplied alpha, so that what lies below shines through. Throws where there is none. */
export function contextOf(canvas) {
  const gl = canvas.getContext("webgl2", {
    alpha: true, premultipliedAlpha: true, antialias: false, depth: false, stencil: false, desynchronized: false,
  });
  if (!gl) throw new Error("This browser has no WebGL 2: turn its hardware acceleration on.");
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  return gl;
}

/** A program that runs `fragment` for every pixel; its uniforms' places by name. */
export function program(gl, fragment) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, WHOLE], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(`[gl] ${gl.getShaderInfoLog(shader)}`);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(`[gl] ${gl.getProgramInfoLog(made)}`);
  const places = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); ++i) {
    const { name } = gl.getActiveUniform(made, i);
    places[name] = gl.getUniformLocation(made, name);
  }
  return { made, places };
}

/** A texture whose storage is made once for each size; `kind` is TEXTURE_2D or TEXTURE_2D_ARRAY. */
export class Texture {
  constructor(gl, kind) {
    Object.assign(this, { gl, kind, shape: "" });
  }

  /** Binds it to a unit, with storage of this shape: [width, height] or [width, height, layers]. */
  bind(unit, format, shape) {
    const { gl, kind } = this;
    gl.activeTexture(gl.TEXTURE0 + unit);
    const wanted = `${format}:${shape}`;
    if (this.shape !== wanted) {
      gl.deleteTexture(this.made ?? null);
      this.made = gl.createTexture();
      this.shape = wanted;
      gl.bindTexture(kind, this.made);
      gl.texParameteri(kind, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(kind, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      gl.texParameteri(kind, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
      gl.texParameteri(kind, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
      if (shape.length === 3) gl.texStorage3D(kind, 1, format, ...shape);
      else gl.texStorage2D(kind, 1, format, ...shape);
    } else {
      gl.bindTexture(kind, this.made);
    }
  }

  use(unit) {
    this.gl.activeTexture(this.gl.TEXTURE0 + unit);
    this.gl.bindTexture(this.kind, this.made);
  }
}
