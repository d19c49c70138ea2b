/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

/* Unlike assert(), never compiled away. */
#define CHECK(condition)						\
	do {								\
		if (!(condition)) {					\
			fprintf(stderr, "%s:%d: %s: not true: %s\n",	\
				__FILE__, __LINE__, __func__, #condition); \
			exit(1);					\
		}							\
	} while (0)

#endif /* CHECK_H */
