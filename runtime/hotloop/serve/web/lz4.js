// LZ4's block format (lz4/doc/lz4_Block_format.md), decoded.

const fail = (rule) => {
  throw new Error(`[lz4] ${rule}`);
};

/** A block -> Uint8Array of exactly `size` bytes. Throws where the block does not hold that many, or reaches outside. */
export function decodeBlock(block, size) {
  const out = new Uint8Array(size);
  const end = block.length;
  let at = 0;
  let made = 0;

  const more = (length) => {
    if (length < 15) return length;
    for (;;) {
      if (at >= end) fail("the block ends inside a length");
      const byte = block[at++];
      length += byte;
      if (byte < 255) return length;
    }
  };

  while (at < end) {
    const token = block[at++];
    const literals = more(token >> 4);
    if (at + literals > end || made + literals > size) fail("literals reach outside");
    if (literals > 16) out.set(block.subarray(at, at + literals), made);
    else for (let i = 0; i < literals; ++i) out[made + i] = block[at + i];
    at += literals;
    made += literals;
    if (at === end) break; // the last sequence has no match

    if (at + 2 > end) fail("the block ends inside an offset");
    const back = block[at] | (block[at + 1] << 8);
    at += 2;
    const length = more(token & 15) + 4;
    if (back === 0 || back > made || made + length > size) fail("a match reaches outside");
    if (back >= length) out.copyWithin(made, made - back, made - back + length);
    else if (back === 1) out.fill(out[made - 1], made, made + length);
    else for (let i = 0; i < length; ++i) out[made + i] = out[made + i - back];
    made += length;
  }
  if (made !== size) fail(`${size} bytes are due, got ${made}`);
  return out;
}
