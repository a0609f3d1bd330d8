const FILLER = 'lorem ipsum dolor sit amet consectetur '.repeat(24);

/** Chat requests, all different, of about `length` characters of text each: with 820, a line has 1 kB. */
export function chatInput(lines: number, length = 820): string {
  let text = '';
  for (let n = 0; n < lines; n += 1) {
    const content = `${n} ${FILLER}`.slice(0, length);
    const body = { model: 'sim-model', messages: [{ role: 'user', content }], max_tokens: 16 };
    text += `${JSON.stringify({ custom_id: `line-${n}`, method: 'POST', url: '/v1/chat/completions', body })}\n`;
  }
  return text;
}
