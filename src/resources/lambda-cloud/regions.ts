import { invalidInput } from '../../domain/errors.ts';
import type { InstanceType } from './types.ts';

/** An instance type as if there were no regions but those that are allowed; none: all are. */
export function withinRegions(type: InstanceType, allowed: readonly string[]): InstanceType {
  if (allowed.length === 0) return type;
  return { ...type, regions: type.regions.filter((region) => allowed.includes(region)) };
}

/** Where both the wish and the settings let a machine be. Throws InvalidInput `lease.region` where that is nowhere. */
export function commonRegions(
  wished: readonly string[],
  allowed: readonly string[],
): readonly string[] {
  if (allowed.length === 0) return wished;
  if (wished.length === 0) return allowed;
  const common = wished.filter((region) => allowed.includes(region));
  if (common.length > 0) return common;
  const [here, there] = [allowed.join(', '), wished.join(', ')];
  const message = `By LAMBDA_CLOUD_REGION machines may be in ${here} only, and ${there} is wished for.`;
  throw invalidInput('lease.region', message);
}
