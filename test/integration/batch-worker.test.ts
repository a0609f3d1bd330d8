import { expect, test } from 'vitest';
import { makeInput } from '../support/batch.ts';
import { startVllmProcess } from '../support/vllm-process.ts';
import { startSite } from '../support/worker-pod.ts';

test('a Job whose annotations name an input is answered, assembled and over with exit 0', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using site = await startSite({ engine: engine.url });
  const input = makeInput(2_500);
  await site.upload('file-in', input.text);
  site.job = { annotations: { 'input-file-id': 'file-in', endpoint: '/v1/chat/completions' } };
  const pod = site.start();
  const code = await pod.exited;
  expect(code, pod.text()).toBe(0);
  const final = await site.final();
  expect(final).toMatchObject({
    state: 'completed',
    request_counts: { total: 2_500, completed: 2_500, failed: 0 },
  });
  console.log(await site.keys('kubernetes/'), await site.keys('files/'), JSON.stringify(final, null, 1), pod.text());
});
