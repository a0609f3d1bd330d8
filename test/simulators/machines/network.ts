import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';

/*
 * The wire between this machine and a simulated one: a veth pair, its far end in the simulated
 * machine's network namespace. The interface is named for the address, so the kernel itself keeps two
 * simulators, in whatever processes, from taking the same one; and it goes away with the namespace.
 */

/** What a machine sees at the other end of its wire. */
export const GATEWAY = '10.213.0.1';

const TAKEN = /File exists/;
const TRIES = 50;

export interface Wire {
  address: string;
  link: string;
}

interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end with `input` as standard input; never throws for its exit code. */
export async function runProgram(
  command: string,
  args: readonly string[],
  input = '',
): Promise<Ended> {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  const { promise, resolve, reject } = Promise.withResolvers<Ended>();
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  child.once('error', reject);
  child.once('close', (code) => resolve({ code, stdout, stderr }));
  child.stdin.on('error', () => {}); // it may end without reading: its exit code says so
  child.stdin.end(input);
  return promise;
}

function draw(): Wire {
  const high = randomInt(1, 255);
  const low = randomInt(1, 255);
  const hex = (high * 256 + low).toString(16).padStart(4, '0');
  return { address: `10.213.${high}.${low}`, link: `slm${hex}` };
}

async function attempt(toLines: (wire: Wire) => readonly string[]): Promise<Wire> {
  for (let tries = 0; tries < TRIES; tries += 1) {
    const wire = draw();
    const { code, stderr } = await runProgram(
      'ip',
      ['-batch', '-'],
      `${toLines(wire).join('\n')}\n`,
    );
    if (code === 0) return wire;
    if (!TAKEN.test(stderr)) throw new Error(`ip: ${stderr.trim()}`);
  }
  throw new Error(`no free address after ${TRIES} tries`);
}

/** All addresses of machines. */
const NETWORK = '10.213.0.0/16';
const FAR_MAC = '02:73:6c:6d:00:01';

/**
 * The far end of a wire and who is there. That is told and not asked for, so that a machine that
 * swallows every packet is silent and not "no route to host".
 */
function lines({ address, link }: Wire): string[] {
  return [
    `address add ${GATEWAY} peer ${address}/32 dev ${link}`,
    `link set ${link} up`,
    `neighbour replace ${address} lladdr ${FAR_MAC} dev ${link} nud permanent`,
  ];
}

/** Lays a wire to the namespace of process `pid`; the far end is called eth0 there. */
export async function layWire(pid: number): Promise<Wire> {
  return attempt((wire) => [
    `link add ${wire.link} type veth peer name eth0 address ${FAR_MAC} netns ${pid}`,
    ...lines(wire),
  ]);
}

/** Gives this end of the wire another far address; who is at the other end must take it too. */
export async function renumberWire(wire: Wire): Promise<Wire> {
  return attempt((next) => [
    `link set ${wire.link} down`,
    `link set ${wire.link} name ${next.link}`,
    `address del ${GATEWAY} peer ${wire.address}/32 dev ${next.link}`,
    ...lines(next),
  ]);
}

/**
 * What a packet meets that is sent to a machine which is gone: a namespace without machines that
 * swallows it. Otherwise it would leave this host by its default route. Ends with this process.
 */
export interface BlackHole {
  close(): Promise<void>;
}

const HOLE = 'echo made; read -r go; ip link set eth0 up; cat >/dev/null; exit 0';

export async function openBlackHole(): Promise<BlackHole> {
  const child = spawn('unshare', ['--net', '/bin/sh', '-c', HOLE], {
    stdio: ['pipe', 'pipe', 'inherit'],
    detached: true,
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
  });
  const closed = Promise.withResolvers<undefined>();
  child.once('close', () => closed.resolve(undefined));
  child.stdin.on('error', () => {}); // it has ended, which `close` says too
  const made = Promise.withResolvers<undefined>();
  child.stdout.once('data', () => made.resolve(undefined));
  child.once('error', made.reject);
  await made.promise;
  const { address, link } = await layWire(child.pid ?? 0);
  // Each simulator has its own: the metric keeps two routes to one network apart.
  const metric = Number.parseInt(link.slice(3), 16);
  const route = [
    'route',
    'add',
    NETWORK,
    'via',
    address,
    'dev',
    link,
    'metric',
    String(metric),
    'onlink',
  ];
  const { code, stderr } = await runProgram('ip', route);
  child.stdin.write('go\n');
  if (code !== 0) throw new Error(`ip: ${stderr.trim()}`);
  return {
    async close() {
      child.kill('SIGKILL');
      await closed.promise;
    },
  };
}
