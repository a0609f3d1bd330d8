import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { EngineSite } from '../../src/domain/engines/contract.ts';
import { engineCommand, STARTED_ENGINES } from '../../src/domain/engines/index.ts';
import { SluiceError } from '../../src/domain/errors.ts';
import { KV_CACHE_FORMATS, WEIGHT_FORMATS } from '../../src/domain/template.ts';
import type { TemplateSpec } from '../../src/domain/template.ts';
import { parseEngineArgs } from '../simulators/machines/engine-args.ts';
import { makeSpec } from '../support/template-spec.ts';
import type { Changes } from '../support/template-spec.ts';

const SITE: EngineSite = {
  servingName: 'qwen',
  port: 8000,
  modelPath: null,
  cacheDir: null,
  apiKeyFile: null,
  secretsFile: null,
  objectStore: null,
  listensTo: 'machine',
};

function argvOf(changes: Changes, site: Partial<EngineSite> = {}): string[] {
  return engineCommand(makeSpec(changes), { ...SITE, ...site }).argv;
}

function outcomeOf(changes: Changes): { argv: string[]; error: unknown } {
  try {
    return { argv: argvOf(changes), error: null };
  } catch (error) {
    return { argv: [], error };
  }
}

const VLLM = 'vllm serve Qwen/Qwen3-8B --host 127.0.0.1 --port 8000 --served-model-name qwen';
const SGLANG =
  'python3 -m sglang.launch_server --model-path Qwen/Qwen3-8B --host 127.0.0.1 --port 8000 --served-model-name qwen';
const sg = { type: 'sglang' } as const;
const chat = ['/v1/chat/completions'] as TemplateSpec['supported_endpoints'];

type Row = [name: string, changes: Changes, rest: string, site?: Partial<EngineSite>];

describe('vLLM', () => {
  const ROWS: Row[] = [
    ['nothing but a model', {}, VLLM],
    [
      'shares out GPUs; experts are a switch and no number',
      { accelerator: { count: 16 }, parallelism: { tp: 4, pp: 2, dp: 2, ep: 8, cp: 2 } },
      `${VLLM} --tensor-parallel-size 4 --pipeline-parallel-size 2 --data-parallel-size 2 --decode-context-parallel-size 2 --enable-expert-parallel`,
    ],
    ['bf16 is a data type', { quantization: { weight: 'bf16' } }, `${VLLM} --dtype bfloat16`],
    ['fp16 is a data type', { quantization: { weight: 'fp16' } }, `${VLLM} --dtype float16`],
    [
      'fp8 is a method, and the cache has a type of its own',
      { quantization: { weight: 'fp8', kv_cache: 'fp8_e5m2' } },
      `${VLLM} --quantization fp8 --kv-cache-dtype fp8_e5m2`,
    ],
    [
      'a version, a tokenizer of another repository and a chat template',
      {
        model_source: { revision: 'abc', tokenizer_path: 'o/t', chat_template_path: '/t.jinja' },
      },
      `${VLLM} --revision abc --tokenizer o/t --tokenizer-revision main --chat-template /t.jinja`,
    ],
    [
      'quantized weights take the tokenizer of the model',
      { model_source: { revision: 'abc' }, quantization: { weights_artifact_uri: 'o/Qwen-AWQ' } },
      VLLM.replace('Qwen/Qwen3-8B', 'o/Qwen-AWQ') +
        ' --tokenizer Qwen/Qwen3-8B --tokenizer-revision abc',
    ],
    [
      'S3 is streamed',
      { model_source: { type: 's3', uri: 's3://bucket/qwen/' } },
      `${VLLM.replace('Qwen/Qwen3-8B', 's3://bucket/qwen')} --load-format runai_streamer`,
    ],
    [
      'a folder of the machine is loaded from, whatever its source was',
      { model_source: { type: 'tos', uri: 'tos://bucket/qwen', revision: 'abc' } },
      VLLM.replace('Qwen/Qwen3-8B', '/models/qwen'),
      { modelPath: '/models/qwen' },
    ],
    [
      'arguments in the order of their names: values, switches, what is off, lists, what begins with a dash',
      {
        engine_args: {
          max_num_seqs: '256',
          enable_prefix_caching: 'false',
          disable_log_stats: 'false',
          async_scheduling: 'true',
          seed: '-1',
          'hf_overrides.rope_theta': '10',
          lora_modules: '["a=/x","b=/y"]',
          swap_space: '0',
        },
      },
      `${VLLM} --async-scheduling --no-enable-prefix-caching --hf-overrides.rope_theta 10 --lora-modules a=/x b=/y --max-num-seqs 256 --seed=-1`,
    ],
    [
      'speculation is one JSON text',
      { engine_args: { speculative_model: 'o/draft', num_speculative_tokens: '4' } },
      `${VLLM} --speculative-config {"model":"o/draft","num_speculative_tokens":4}`,
    ],
    [
      'pools for templates that only embed',
      { supported_endpoints: ['/v1/embeddings', '/v1/score'] },
      `${VLLM} --runner pooling`,
    ],
    ['generates for those that chat', { supported_endpoints: chat }, VLLM],
    [
      'what is suggested gives way to engine_args',
      { supported_endpoints: ['/v1/embeddings'], engine_args: { runner: 'auto' } },
      `${VLLM} --runner auto`,
    ],
    [
      'the user has the last word, and ours is left out',
      {
        engine: { serve_args: ['--max_num_seqs=8', '-q', 'awq', '--no-enable-prefix-caching'] },
        quantization: { weight: 'fp8' },
        engine_args: { max_num_seqs: '256', enable_prefix_caching: 'true' },
      },
      `${VLLM} --max_num_seqs=8 -q awq --no-enable-prefix-caching`,
    ],
    [
      'names of the model beside ours',
      { engine: { serve_args: ['--served-model-name', 'qwen', 'other'] } },
      `${VLLM.replace(' --served-model-name qwen', '')} --served-model-name qwen other`,
    ],
    [
      'a short flag that begins as one of a size does',
      { engine: { serve_args: ['-dc', '{}', '-O3'] } },
      `${VLLM} -dc {} -O3`,
    ],
    [
      'a size that says what the template says',
      {
        engine: { serve_args: ['-tp', '2'] },
        accelerator: { count: 2 },
        parallelism: { tp: 2 },
      },
      `${VLLM} -tp 2`,
    ],
    [
      'an address for all, with a key',
      {},
      VLLM.replace('127.0.0.1', '0.0.0.0'),
      { listensTo: 'world', apiKeyFile: '/run/key' },
    ],
    [
      'a container whose port is published',
      {},
      VLLM.replace('127.0.0.1', '0.0.0.0'),
      { listensTo: 'container' },
    ],
  ];

  test.for(ROWS)('%s', ([, changes, argv, site]) => {
    expect(argvOf(changes, site).join(' ')).toBe(argv);
  });
});

describe('SGLang', () => {
  const ROWS: Row[] = [
    ['nothing but a model', {}, `${SGLANG} --enable-metrics`],
    [
      'shares out GPUs',
      { accelerator: { count: 8 }, parallelism: { tp: 4, dp: 2, ep: 4 } },
      `${SGLANG} --tp-size 4 --dp-size 2 --ep-size 4 --enable-metrics`,
    ],
    [
      'formats by its own names',
      { quantization: { weight: 'int8', kv_cache: 'fp8' } },
      `${SGLANG} --quantization w8a8_int8 --kv-cache-dtype fp8_e4m3 --enable-metrics`,
    ],
    [
      'bf16 is a data type',
      { quantization: { weight: 'bf16' } },
      `${SGLANG} --dtype bfloat16 --enable-metrics`,
    ],
    [
      'arguments by its own names',
      {
        engine_args: {
          max_model_len: '8192',
          max_num_seqs: '64',
          gpu_memory_utilization: '0.9',
          enable_prefix_caching: 'false',
          enable_chunked_prefill: 'false',
          attention_backend: 'fa3',
        },
      },
      `${SGLANG} --enable-metrics --attention-backend fa3 --chunked-prefill-size=-1 --disable-radix-cache --mem-fraction-static 0.9 --context-length 8192 --max-running-requests 64`,
    ],
    [
      'what is on by default needs no flag',
      { engine_args: { enable_prefix_caching: 'true', enable_chunked_prefill: 'true' } },
      `${SGLANG} --enable-metrics`,
    ],
    [
      'reads its key from a file of settings, never from its command line',
      {},
      SGLANG.replace('--port 8000', '--port 8000 --config /run/key.yaml') + ' --enable-metrics',
      { apiKeyFile: '/run/key.yaml' },
    ],
    [
      'the user has the last word',
      { engine: { serve_args: ['--context-length', '10'] }, engine_args: { max_model_len: '20' } },
      `${SGLANG} --enable-metrics --context-length 10`,
    ],
    [
      'embeds',
      { supported_endpoints: ['/v1/embeddings'] },
      `${SGLANG} --is-embedding --enable-metrics`,
    ],
  ];

  test.for(ROWS)('%s', ([, changes, argv, site]) => {
    expect(argvOf({ ...changes, engine: { ...sg, ...changes.engine } }, site).join(' ')).toBe(argv);
  });
});

describe('a server of your own', () => {
  const serve = ['serve', '--listen={host}:{port}', '{model}', '-n', '{gpus}', '{"a":{x}}'];

  test.each(['custom', 'mock'] as const)('%s: its command with our port and model', (type) => {
    expect(argvOf({ engine: { type, serve_args: serve } })).toEqual([
      'serve',
      '--listen=127.0.0.1:8000',
      'Qwen/Qwen3-8B',
      '-n',
      '1',
      '{"a":{x}}',
    ]);
  });

  test.each([
    [[], {}, /whole command/],
    [['serve'], {}, /\{port\}/],
    [['serve', '0.0.0.0:{port}'], {}, /\{host\}/],
    [['serve', '{port}', '{tokenizer}'], {}, /nothing to fill \{tokenizer\}/],
    [['serve', '{port}'], { engine_args: { max_num_seqs: '1' } }, /engine_args.max_num_seqs/],
    [['serve', '{port}'], { quantization: { weight: 'fp8' } }, /^quantization/],
  ] as [string[], Changes, RegExp][])('%j %j is refused', (serve_args, changes, message) => {
    expect(() => argvOf({ ...changes, engine: { type: 'custom', serve_args } })).toThrow(message);
  });
});

describe('refused, with what to write instead', () => {
  const ROWS: [changes: Changes, message: RegExp, site?: Partial<EngineSite>][] = [
    [{ engine: { type: 'trtllm' } }, /supported are vllm, sglang, mock, custom/],
    [{ engine: { type: 'lmdeploy' } }, /supported are vllm/],
    [{ engine: { type: 'vipe' } }, /supported are vllm/],
    [{ engine: { serve_args: ['--host', '0.0.0.0'] } }, /--host .* leave it out/],
    [{ engine: { serve_args: ['--port=1'] } }, /--port/],
    [{ engine: { serve_args: ['--api_key', 's'] } }, /--api-key/],
    [{ engine: { serve_args: ['--api-k', 's'] } }, /--api-key/],
    [{ engine: { serve_args: ['--hos', 's'] } }, /--host/],
    [{ engine: { serve_args: ['--hf-token', 's'] } }, /auth_secret_ref/],
    [{ engine: { serve_args: ['--uds', '/s'] } }, /--uds/],
    [{ engine: { serve_args: ['--config', 'f'] } }, /engine_args/],
    [{ engine: { serve_args: ['--ssl-keyfile', 'f'] } }, /tunnel/],
    [{ engine: { serve_args: ['-n2'] } }, /--nnodes/],
    [{ engine: { serve_args: ['--model', 'x'] } }, /model_source.uri/],
    [{ engine: { serve_args: ['Qwen/Qwen3-8B', '--seed', '1'] } }, /before any flag/],
    [{ engine: { serve_args: ['--max-num-seqs 8'] } }, /two entries/],
    [{ engine: { serve_args: ['--seed', ''] } }, /empty/],
    [{ engine: { serve_args: ['--', 'x'] } }, /ends the flags/],
    [{ engine: { serve_args: ['--served-model-name', 'x'] } }, /leaves out 'qwen'/],
    [{ engine: { serve_args: ['--served', 'x'] } }, /leaves out 'qwen'/],
    [{ engine: { ...sg, serve_args: ['--served-model-name', 'qwen', 'x'] } }, /takes one name/],
    [{ engine: { serve_args: ['-tp', '4'] } }, /parallelism.tp, which is 1/],
    [{ engine: { serve_args: ['--tensor-parallel=4'] } }, /parallelism.tp/],
    [{ engine: { serve_args: ['-t', '4'] } }, /parallelism.tp/],
    [{ engine: { ...sg, serve_args: ['--tp', '4'] } }, /parallelism.tp/],
    [{ engine: { ...sg, serve_args: ['--model', 'x'] } }, /model_source.uri/],
    [{ engine: { ...sg, serve_args: ['--admin-api-key', 'x'] } }, /command line/],
    [{ engine_args: { host: '0.0.0.0' } }, /engine_args.host/],
    [{ engine_args: { api_key: 's' } }, /engine_args.api_key/],
    [{ engine_args: { tensor_parallel_size: '2' } }, /parallelism.tp/],
    [{ engine_args: { dtype: 'float16' }, quantization: { weight: 'bf16' } }, /twice/],
    [{ engine_args: { max_num_seqs: '1', 'max-num-seqs': '2' } }, /twice/],
    [{ engine_args: { '--max-num-seqs': '1' } }, /without its dashes/],
    [{ engine_args: { swap_space: '4' } }, /leave it out/],
    [{ engine_args: { num_speculative_tokens: '4' } }, /speculative_model/],
    [{ engine: sg, engine_args: { speculative_model: 'd' } }, /speculative_algorithm/],
    [{ quantization: { weight: 'int8' } }, /int8_per_channel_weight_only/],
    [{ quantization: { kv_cache: 'int8' } }, /set fp8/],
    [{ engine: sg, quantization: { kv_cache: 'int8' } }, /set fp8/],
    [{ accelerator: { count: 8 }, parallelism: { ep: 8 } }, /set tp to 8 .* or dp to 8/],
    [{ accelerator: { count: 4 }, parallelism: { tp: 4, ep: 2 } }, /set it to 4/],
    [{ parallelism: { sp: 2 } }, /parallelism.sp/],
    [{ accelerator: { count: 4 }, parallelism: { tp: 4, cp: 3 } }, /divisible by 3/],
    [{ engine: sg, parallelism: { cp: 2 } }, /parallelism.cp/],
    [{ engine: sg, accelerator: { count: 4 }, parallelism: { tp: 4, ep: 3 } }, /divisible/],
    [{ engine: sg, model_source: { revision: 'a', tokenizer_path: 'o/t' } }, /tokenizer/],
    [{ model_source: { type: 'hdfs', uri: 'hdfs://x' } }, /huggingface, s3, tos and local/],
    [{ model_source: { type: 'local', uri: 'models/x' } }, /absolute/],
    [{ model_source: { type: 's3', uri: 'bucket/x' } }, /s3:\/\/bucket\/folder/],
    [{ model_source: { type: 'tos', uri: 'tos://b/x' } }, /TOS_ENDPOINT/],
    [{ model_source: { uri: '--trust-remote-code' } }, /no name on the Hugging Face hub/],
    [{ model_source: { chat_template_path: 's3://b/t' } }, /file on the machine/],
    [{ model_source: { auth_secret_ref: 'hf' } }, /no file for the secret 'hf'/],
    [{ engine: { health_endpoint: 'http://x/health' } }, /no path/],
    [{}, /needs an API key/, { listensTo: 'world' }],
    [{}, /serving_name/, { servingName: '' }],
  ];

  test.for(ROWS)('%j', ([changes, message, site]) => {
    expect(() => argvOf(changes, site)).toThrow(message);
  });

  test('as errors that no retry mends, with the field at fault', () => {
    const { error } = outcomeOf({ engine_args: { swap_space: '4' } });
    expect(error).toBeInstanceOf(SluiceError);
    expect(error).toMatchObject({ kind: 'InvalidInput', param: 'engine_args.swap_space' });
  });
});

describe('around the command', () => {
  test('paths, times and image as the template has them', () => {
    const engine = {
      image: 'registry:5000/vllm',
      health_endpoint: 'ready',
      metrics_endpoint: '/m',
      ready_timeout_seconds: 90,
    };
    expect(engineCommand(makeSpec({ engine }), SITE)).toMatchObject({
      image: 'registry:5000/vllm:v0.32.0',
      healthPath: '/ready',
      metricsPath: '/m',
      readyTimeoutMs: 90_000,
      port: 8000,
    });
    expect(engineCommand(makeSpec(), SITE)).toMatchObject({
      image: 'vllm/vllm-openai:v0.32.0',
      healthPath: '/health',
      metricsPath: '/metrics',
    });
  });

  test('secrets are named and never in words or variables; TOS is S3 with another address', () => {
    const model_source = { type: 'tos', uri: 'tos://b/m', auth_secret_ref: 'volc' } as const;
    const command = engineCommand(makeSpec({ model_source }), {
      ...SITE,
      cacheDir: '/cache',
      apiKeyFile: '/run/key',
      secretsFile: '/run/secrets',
      objectStore: { endpoint: 'https://tos-s3-cn-beijing.volces.com', region: 'cn-beijing' },
    });
    expect(command.argv.slice(0, 3)).toEqual(['vllm', 'serve', 's3://b/m']);
    expect(command.env).toEqual({
      HF_HOME: '/cache',
      AWS_EC2_METADATA_DISABLED: 'true',
      AWS_ENDPOINT_URL: 'https://tos-s3-cn-beijing.volces.com',
      AWS_DEFAULT_REGION: 'cn-beijing',
      RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING: '1',
      VLLM_NO_USAGE_STATS: '1',
      DO_NOT_TRACK: '1',
    });
    const named = (name: string, entry: string) => ({
      name,
      source: { kind: 'named', name: 'volc', entry },
    });
    expect(command.secretFiles).toEqual([
      {
        path: '/run/secrets',
        format: 'env',
        entries: [
          named('AWS_ACCESS_KEY_ID', 'access_key'),
          named('AWS_SECRET_ACCESS_KEY', 'secret_key'),
        ],
      },
      {
        path: '/run/key',
        format: 'env',
        entries: [{ name: 'VLLM_API_KEY', source: { kind: 'api_key' } }],
      },
    ]);
    expect(command.paths).toEqual(['/cache']);
    expect(command.argv.join(' ')).not.toContain('/run/');
  });

  test('a gated model of the hub gets its token, and SGLang its key as a setting', () => {
    const spec = makeSpec({ engine: sg, model_source: { auth_secret_ref: 'hf' } });
    const site = { ...SITE, apiKeyFile: '/run/key.yaml', secretsFile: '/run/secrets' };
    expect(engineCommand(spec, site).secretFiles).toEqual([
      {
        path: '/run/secrets',
        format: 'env',
        entries: [{ name: 'HF_TOKEN', source: { kind: 'named', name: 'hf', entry: 'token' } }],
      },
      {
        path: '/run/key.yaml',
        format: 'yaml',
        entries: [{ name: 'api-key', source: { kind: 'api_key' } }],
      },
    ]);
  });
});

describe('whatever the template', () => {
  const ARGS = fc.record(
    {
      max_num_seqs: fc.nat(999).map(String),
      max_model_len: fc.nat(99_999).map(String),
      gpu_memory_utilization: fc.constantFrom('0.5', '0.9'),
      enable_prefix_caching: fc.constantFrom('true', 'false'),
      enable_chunked_prefill: fc.constantFrom('true', 'false'),
      trust_remote_code: fc.constantFrom('true', 'True', ''),
      seed: fc.integer().map(String),
    },
    { requiredKeys: [] },
  );
  // Flags of both engines, so that the simulated ones take them.
  const SERVED = fc.array(
    fc.constantFrom(
      ['--trust-remote-code'],
      ['--dtype', 'half'],
      ['--quantization=fp8'],
      ['--load-format', 'dummy'],
      ['--revision', 'x y'],
      ['--chat-template', '{"a": "b"}'],
      ['--served-model-name', 'qwen'],
    ),
    { maxLength: 6 },
  );
  const SIZES = fc.record({
    tp: fc.constantFrom(1, 2, 8),
    pp: fc.constantFrom(1, 2),
    dp: fc.constantFrom(1, 4),
    isExpert: fc.boolean(),
  });
  const CASES = fc.record({
    type: fc.constantFrom('vllm' as const, 'sglang' as const),
    args: ARGS,
    serveArgs: SERVED.map((lists) => lists.flat()),
    sizes: SIZES,
    weight: fc.constantFrom('' as const, ...WEIGHT_FORMATS.filter((each) => each !== 'int8')),
    kvCache: fc.constantFrom('' as const, ...KV_CACHE_FORMATS.filter((each) => each !== 'int8')),
    revision: fc.constantFrom('', 'main'),
    endpoint: fc.constantFrom('/v1/chat/completions' as const, '/v1/responses' as const),
  });

  test('serve_args come last as they are, no word is empty, no flag of ours twice, and the engine starts', () => {
    fc.assert(
      fc.property(CASES, (given) => {
        const { type, args, serveArgs, weight, kvCache, revision, endpoint } = given;
        const { isExpert, ...sizes } = given.sizes;
        const ep = isExpert ? sizes.tp * (type === 'vllm' ? sizes.dp : 1) : 1;
        const command = engineCommand(
          makeSpec({
            engine: { type, serve_args: serveArgs },
            model_source: { revision },
            accelerator: { count: sizes.tp * sizes.pp * sizes.dp },
            parallelism: { ...sizes, ep },
            engine_args: args,
            quantization: { weight, kv_cache: kvCache },
            supported_endpoints: [endpoint],
          }),
          SITE,
        );
        const { argv } = command;
        const ours = argv.slice(0, argv.length - serveArgs.length);
        expect(argv.slice(ours.length)).toEqual(serveArgs);
        expect(argv).not.toContain('');
        const flags = ours.filter((word) => word.startsWith('--')).map((w) => w.split('=')[0]);
        const plain = flags.map((flag) => flag?.replace(/^--no-/, '--'));
        expect(new Set(plain).size).toBe(plain.length);
        for (const word of serveArgs) expect(plain).not.toContain(word.split('=')[0]);
        expect(flags).not.toContain('--api-key');
        const skipped = type === 'vllm' ? 2 : 3;
        const engine = parseEngineArgs(type, argv.slice(skipped));
        expect(engine).toMatchObject({ host: '127.0.0.1', port: 8000, model: 'Qwen/Qwen3-8B' });
        expect(engine.servedNames).toEqual(['qwen']);
        expect(engine.worldSize).toBe(sizes.tp * sizes.pp * sizes.dp);
        expect(['bf16', 'fp16', 'bfloat16']).not.toContain(engine.quantization);
      }),
    );
  });

  test('no flag that is refused gets through in any spelling, and no text breaks the reading', () => {
    const refused = fc.constantFrom('host', 'port', 'api-key', 'config', 'ssl-keyfile', 'nnodes');
    fc.assert(
      fc.property(
        fc.constantFrom('vllm' as const, 'sglang' as const),
        refused,
        fc.nat(3),
        fc.boolean(),
        fc.array(fc.string()),
        (type, flag, cut, isJoined, rest) => {
          const name = `--${flag.slice(0, Math.max(3, flag.length - cut))}`;
          const words = ['--seed', '1', ...(isJoined ? [`${name}=x`] : [name, 'x']), ...rest];
          const act = () => argvOf({ engine: { type, serve_args: words } });
          expect(act).toThrow(SluiceError);
        },
      ),
    );
  });

  test('an error is always one that says so', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...STARTED_ENGINES),
        fc.array(fc.string()),
        fc.dictionary(fc.string(), fc.string()),
        fc.string(),
        (type, serve_args, engine_args, uri) => {
          const { argv, error } = outcomeOf({
            engine: { type, serve_args },
            engine_args,
            model_source: { uri },
          });
          expect(argv).not.toContain('');
          expect(error === null || error instanceof SluiceError).toBe(true);
        },
      ),
    );
  });
});
